"""A model behind an endpoint beside ours: what it writes is measured, likelihoods are n/a, nothing is paid twice or sent where it may not.

Covers: train/plan/api_models, train/stages/api_answers, train/generation/endpoint.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import RECORDS, Conversation, Message, write_records
from rounds.train.config import recipe as recipes
from rounds.train.config.cluster import Machine
from rounds.train.config.judging import Endpoint
from rounds.train.engine.params import ApiAnswersParams, PromptSet
from rounds.train.engine.store import write_json
from rounds.train.generation import samples
from rounds.train.plan import comparison
from rounds.train.plan.api_models import Spending
from rounds.train.stages import api_answers
from tests.train import command_line
from tests.train.endpoints import Server

pytest.importorskip("openai", reason="the optional package openai is not installed")
MINI = Path(__file__).parents[1] / "mini.yaml"
NAME = "api:there/big/model:1"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def cluster(folder: Path, **endpoint: object) -> Path:
    """A cluster file with one endpoint."""
    file = folder / "cluster.yaml"
    file.write_text(json.dumps({"endpoints": {"there": endpoint}}))
    return file


def test_it_stands_beside_a_policy_in_what_is_written(undisturbed: Path, server: Server, tmp_path: Path):
    store = shutil.copytree(undisturbed, tmp_path / "store")
    words = (f"{MINI}:sft", NAME, "--recipe", MINI, "--cluster", cluster(tmp_path, base_url=server.url), "--store", store)
    said = command_line.afresh("eval", *words, environment={"COLUMNS": "240"})
    page = Path(next(line for line in said.splitlines() if line.startswith("page:")).partition(":")[2].strip())
    html = page.read_text()
    assert "n/a" in html and NAME in html
    told = json.loads((page.parent / "done.json").read_text())["counts"]["scores"]
    own, other = told[f"{MINI}:sft"], told[NAME]
    assert set(other) < set(own) and {metric.partition("/")[0] for metric in other} == {"answers"}
    assert other["answers/ended"][0] == 1.0 and other["answers/tokens"][0] == 10.0
    asked = len(server.bodies)
    assert asked == own["answers/tokens"][1] and {body["model"] for body in server.bodies} == {"big/model:1"}
    assert all(0 <= body["seed"] < 2**31 and body["temperature"] == 0 for body in server.bodies)
    assert "nothing was left to do" in command_line.afresh("eval", *words) and len(server.bodies) == asked


@pytest.mark.parametrize(
    ("name", "endpoint", "more", "says"),
    [
        ("api:there", {"base_url": "http://127.0.0.1:9/v1"}, (), "expected api:ENDPOINT/MODEL"),
        ("api:their/m", {"base_url": "http://127.0.0.1:9/v1"}, (), "names no endpoint 'their' under `endpoints`. did you mean 'there'?"),
        (
            NAME,
            {"base_url": "http://192.0.2.1/v1"},
            (),
            "set --allow-outside and allow_outside: true for this endpoint in the cluster file",
        ),
        (NAME, {"base_url": "http://192.0.2.1/v1", "allow_outside": True}, (), "set --allow-outside if they may be"),
        (
            NAME,
            {"base_url": "http://192.0.2.1/v1"},
            ("--allow-outside",),
            "set allow_outside: true for this endpoint in the cluster file if",
        ),
        (NAME, {"base_url": "http://127.0.0.1:9/v1"}, ("--set", "evaluate.answers=[]"), "lets nothing be written (`evaluate.answers`)"),
    ],
    ids=str,
)
def test_a_mistake_is_told_before_anything_is_asked(tmp_path: Path, name: str, endpoint: dict, more: tuple, says: str):
    words = ("eval", name, "--recipe", MINI, "--cluster", cluster(tmp_path, **endpoint), "--store", tmp_path / "store", *more)
    said = command_line.afresh(*words, expect=1, environment={"COLUMNS": "400"})
    assert says in said and "Traceback" not in said


def test_what_it_may_cost_is_in_no_key(tmp_path: Path):
    def keys(name: str, spending: Spending) -> list[str]:
        made = comparison.build_plan([name], recipes.load(MINI), MINI.parent, tmp_path, False, (), spending)
        return [stage.key for stage in made.stages if stage.kind.writes or stage.kind.measures]

    assert keys("api:there/m", Spending()) == keys("api:there/m", Spending(True, 7, 900))
    assert keys("api:there/m", Spending()) != keys("api:there/n", Spending())
    assert keys("api:there/m", Spending()) != keys("api:here/m", Spending()), "two servers may call their models alike"


# The stage


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Twelve prompts."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    rows = [Conversation(f"c{n}", "made", (Message("user", f"Question {n}?"), Message("assistant", "Yes."))) for n in range(12)]
    write_records(folder / RECORDS, rows, "conversation")
    write_json(folder / "done.json", {})
    return folder


def run(server: Server, prompts: Path, out: Path, **fields: object) -> dict:
    out.mkdir(exist_ok=True)
    one = PromptSet.model_validate({"name": "open", "max_rows": 10, "system_prompt": "Be brief.", "max_new_tokens": 9})
    asked = {"model": "m", "sets": (one,), "seed": 1, "endpoint": "there", "max_calls": 100, "max_tokens": 10**6} | fields
    machine = Machine(endpoints={"there": Endpoint(base_url=server.url, parallel=1, timeout_seconds=20)})
    return api_answers.run(ApiAnswersParams.model_validate(asked), {"prompts.open": prompts}, out, machine)


def test_a_limit_keeps_what_was_paid_for_and_goes_on(server: Server, prompts: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"model m at endpoint there: max_calls 4 is reached.* Of 10 questions 4 are settled"):
        run(server, prompts, tmp_path / "out", max_calls=4)
    assert len(server.bodies) == 4
    counts = run(server, prompts, tmp_path / "out")
    assert len(server.bodies) == 10 == counts["calls"] and counts["sets"]["open"]["answers"] == 10 and not counts["dropped"]
    assert server.bodies[0]["messages"][0] == {"role": "system", "content": "Be brief."}


def test_an_answer_that_is_not_to_be_had_is_missing_and_not_empty(server: Server, prompts: Path, tmp_path: Path):
    server.answer = lambda number, text: (
        "die" if text == "Be brief." and "Question 3?" in str(server.bodies[number - 1]) else f"Answer {number}."
    )
    with pytest.raises(UserError, match=r"1 of 10 answers were not to be had, more than a share of 0.05; the last: APIConnectionError"):
        run(server, prompts, tmp_path / "out")
    counts = run(server, prompts, tmp_path / "out", max_missing_share=0.2)
    assert counts["dropped"] == {"open": {"no_reply": 1}} and counts["sets"]["open"]["answers"] == 9
    rows = list(samples.read(samples.file_of(tmp_path / "out", "open")))
    assert len(rows) == 9 and all(row.answer for row in rows) and "c3" not in {row.prompt_id for row in rows}


def test_an_answer_that_was_cut_did_not_end(server: Server, prompts: Path, tmp_path: Path):
    server.answer = lambda number, text: (200, {}, server.completion("And so", cut=True))
    assert run(server, prompts, tmp_path / "out")["sets"]["open"]["ended_share"] == 0.0


@pytest.mark.parametrize("content", [["a list"], "\ud800", {"text": "x"}], ids=str)
def test_a_reply_that_is_no_text_is_no_reply(server: Server, prompts: Path, tmp_path: Path, content: object):
    def answer(number: int, text: str) -> object:
        said = json.loads(server.completion("x"))
        said["choices"][0]["message"]["content"] = content
        return 200, {}, json.dumps(said)

    server.answer = answer
    with pytest.raises(UserError, match=r"answers were not to be had|requests in a row had no reply"):
        run(server, prompts, tmp_path / "out")
    server.answer = lambda number, text: "Well."
    assert run(server, prompts, tmp_path / "out")["sets"]["open"]["answers"] == 10


def test_a_reply_that_does_not_count_its_tokens_is_counted_at_the_most_it_may_have_taken(server: Server, prompts: Path, tmp_path: Path):
    def answer(number: int, text: str) -> object:
        said = json.loads(server.completion("x"))
        said["usage"]["total_tokens"] = None
        return 200, {}, json.dumps(said)

    server.answer = answer
    counts = run(server, prompts, tmp_path / "out")
    assert counts["tokens"] >= 10 * len("Be brief.") and counts["calls"] == 10
