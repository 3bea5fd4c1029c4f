"""Prompts for policies to answer: which rows become one, in which part, and what can never be among them; and samples of one part.

Covers: train/config/prompts, train/generation/parts.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Conversation, Kind, Message, Pair, Prompt, Question, Record, read_records, write_records
from rounds.data_prep.render import with_choices
from rounds.train.cli import app
from rounds.train.config import recipe
from rounds.train.config.cluster import Machine
from rounds.train.engine import params as engine_params
from rounds.train.engine import store, worker
from rounds.train.engine.graph import Stage
from rounds.train.forecast import evaluation_tokens, row_counts
from rounds.train.generation import parts, samples
from rounds.train.plan.pipeline import Plan, build_plan
from tests import staged
from tests.train.conftest import ASKED, FACTS

Run = Callable[..., tuple[Path, dict]]
VIGNETTE = (
    "A 54-year-old gardener comes to the clinic with six weeks of burning pain in both soles that wakes him at night "
    "and eases when he walks on cold tiles. Which nerve fibres are most likely damaged?"
)
MACHINE = Machine(device="cpu", threads=1, eval_batch_size=16)
TINY = {"kind": "tiny", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 400,
        "max_position_embeddings": 256}  # fmt: skip


def asked(text: str, *before: Message) -> tuple[Message, ...]:
    return (*before, Message("user", text))


def made(folder: Path, name: str, rows: list[Any], kind: Kind) -> Path:
    (folder / name).mkdir()
    write_records(folder / name / "records.parquet", rows, kind)
    return folder / name


def run(out: Path, inputs: dict[str, Path], *filters: Any, count: int = 1, seed: int = 0) -> tuple[dict[str, Prompt], dict[str, int], dict]:
    """Make prompts of all sources that are given; returns them by id, their parts, and the counts."""
    out.mkdir()
    mix = [{"name": name.removeprefix("source.")} for name in inputs if name.startswith("source.")]
    uses = [{"name": each} if isinstance(each, str) else each for each in filters]
    counts = staged.run("prompts", {"mix": mix, "filters": uses, "seed": seed, "kind": "prompt", "parts": count}, inputs, out, MACHINE)
    rows = [row for row in read_records(out / "records.parquet") if isinstance(row, Prompt)]
    return {row.id: row for row in rows}, parts.read(out), counts


def test_a_record_of_each_kind_becomes_what_it_asks_with_the_right_answer_where_it_says_one(tmp_path: Path):
    system = Message("system", "Be brief.")
    rows: dict[str, tuple[Kind, list[Record]]] = {
        "talks": ("conversation", [Conversation("1", "made", (*asked("And then?", *asked("Hello."), Message("assistant", "Hi.")),
                                                              Message("assistant", "Nothing.")))]),
        "pairs": ("pair", [Pair("g:1", "made", asked("Which is better?", system), "This.", "That.", "g")]),
        "exam": ("question", [Question("1", "made", asked(with_choices("Which one?", ("left", "right"))), ("left", "right"), 1)]),
        "sums": ("prompt", [Prompt("1", "gsm8k", asked("2 + 2?"), "4", details='{"steps": 1}')]),
    }  # fmt: skip
    inputs = {f"source.{name}": made(tmp_path, name, given, kind) for name, (kind, given) in rows.items()}
    found, part, counts = run(tmp_path / "out", inputs, "exact_dedup")
    assert set(found) == set(part) == {"talks:1", "pairs:g:1", "exam:1", "sums:1"}
    assert [turn.content for turn in found["talks:1"].prompt] == ["Hello.", "Hi.", "And then?"]
    assert found["pairs:g:1"].prompt[0] == system and found["pairs:g:1"].group == "g"
    assert (found["exam:1"].answer, found["exam:1"].choices) == ("right", ("left", "right"))
    assert found["exam:1"].prompt == asked(with_choices("Which one?", ("left", "right")))
    assert (found["sums:1"].answer, found["sums:1"].details) == ("4", '{"steps": 1}')
    assert found["talks:1"].answer is None and found["pairs:g:1"].answer is None
    assert counts["with_right_answer"] == 2 and counts["parts"] == {"1": 4} and counts["out"] == dict.fromkeys(rows, 1)


def test_what_is_asked_twice_is_asked_once_before_it_is_divided(tmp_path: Path):
    """Whatever its answer: the first stays, so a source with right answers is named first."""
    exam = [Question("q", "made", asked("What blocks the pump?"), ("omeprazole", "water"), 0)]
    texts = {"t": "what  blocks the PUMP?", "n": VIGNETTE, "m": VIGNETTE.replace("gardener", "baker")}
    other = [Conversation(name, "made", (*asked(text), Message("assistant", f"It is {name}."))) for name, text in texts.items()]
    inputs = {"source.exam": made(tmp_path, "exam", exam, "question"), "source.talks": made(tmp_path, "talks", other, "conversation")}
    near = {"name": "near_dedup", "jaccard": 0.6}
    found, _, counts = run(tmp_path / "out", inputs, "exact_dedup", near, {"name": "length", "min_answer_characters": 50})
    assert sorted(found) == ["exam:q", "talks:n"] and found["exam:q"].answer == "omeprazole"
    assert counts["dropped"] == {"exact_dedup": {"duplicate": 1}, "near_dedup": {"near_duplicate": 1}, "length": {}}
    assert counts["records"] == sum(counts["parts"].values()) == 2
    lines = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert {(line["source"], line["id"]) for line in lines} == {("talks", "t"), ("talks", "m")}


_WORDS = st.lists(st.sampled_from(["aspirin", "dose", "why", "child", "kidney", "how", "much"]), min_size=1, max_size=4).map(" ".join)


@given(st.lists(_WORDS, min_size=1, max_size=30, unique=True), st.integers(1, 7), st.randoms(use_true_random=False))
def test_parts_share_no_question_and_stay_when_prompts_come_or_go(texts: list[str], count: int, random: Any):
    """However it is written, and with whichever choices, a question is in one part."""
    forms: list[Callable[[str], Prompt]] = [
        lambda text: Prompt("a", "x", asked(text)),
        lambda text: Prompt("b", "x", asked(f"  {text.upper()}\n")),
        lambda text: Prompt("c", "x", asked(text, Message("system", "Be brief."))),
        lambda text: Prompt("d", "x", asked(with_choices(text, ("no", "yes"))), "yes", ("no", "yes")),
    ]
    whole = {text: {parts.part_of(parts.question_of(form(text), "x"), count) for form in forms} for text in texts}
    assert all(len(each) == 1 and each <= set(range(1, count + 1)) for each in whole.values())
    some = random.sample(texts, max(1, len(texts) // 2))
    assert {text: parts.part_of(parts.question_of(forms[0](text), "x"), count) for text in some} == {
        text: next(iter(whole[text])) for text in some
    }


def test_parts_are_of_like_size_and_the_same_for_every_seed_and_beside_any_source(tmp_path: Path):
    talks = [Conversation(f"c{n}", "made", (*asked(f"Is {n} a number?"), Message("assistant", "Yes."))) for n in range(900)]
    more = [Conversation(f"c{n}", "made", (*asked(f"Is -{n} one?"), Message("assistant", "Yes."))) for n in range(1, 40)]
    one = {"source.talks": made(tmp_path, "talks", talks, "conversation")}
    found, part, counts = run(tmp_path / "one", one, "exact_dedup", count=3)
    assert all(250 < size < 350 for size in counts["parts"].values()) and len(part) == len(found) == 900
    _, again, _ = run(tmp_path / "two", {"source.more": made(tmp_path, "more", more, "conversation"), **one}, count=3, seed=9)
    assert {name: again[name] for name in part} == part and len(again) == 939
    with pytest.raises(UserError, match=r"nothing is left for part .* of 50: 39 prompts are in the other parts; lower `parts`"):
        run(tmp_path / "few", {"source.more": tmp_path / "more"}, count=50)


def test_questions_that_their_source_knows_as_one_are_in_one_part(tmp_path: Path):
    """The generated facts are asked in several wordings, in conversations and in pairs: a fact is in one part."""
    use = {"source": "clinic_facts", "split": "train"}
    inputs = {}
    for name, split in (("facts", "train"), ("pairs", "train_pairs_1")):
        (tmp_path / name).mkdir()
        given = {"use": use | {"split": split}, "source_version": 1, "repository": None, "revision": None}
        staged.run("source", given, {}, tmp_path / name, None)
        inputs[f"source.{name}"] = tmp_path / name
    found, part, _ = run(tmp_path / "out", inputs, "exact_dedup", count=3)
    of_fact: dict[str, set[int]] = {}
    for name in found:
        of_fact.setdefault("/".join(name.partition(":")[2].split("/")[:2]), set()).add(part[name])
    assert len(of_fact) < len(found) and all(len(each) == 1 for each in of_fact.values())
    assert len(Counter(part.values())) == 3


def recipe_of(folder: Path, **changes: Any) -> Path:
    """Write a recipe with an exam held out, and prompts of notes that hold one of its questions."""
    notes = [{"question": f"What does {drug} do?", "answer": f"It {acts}."} for drug, acts in FACTS]
    notes += [{"question": asking.format(drug), "answer": "It works."} for drug, _ in FACTS for asking in ASKED[1:]]
    notes += [{"question": VIGNETTE, "answer": "The small ones."}, {"question": VIGNETTE.lower().replace(".", " ."), "answer": "Which?"}]
    (folder / "notes.jsonl").write_text("\n".join(map(json.dumps, notes)))
    (folder / "exam.jsonl").write_text(json.dumps(
        {"id": 1, "question": VIGNETTE, "options": {"A": "Small fibres", "B": "Large fibres"}, "answer_idx": "A"}))  # fmt: skip
    data = {
        "name": "asking", "base": TINY,
        "sources": {
            "notes": {"source": "file", "path": "notes.jsonl", "format": "question_answer", "licence": "ours", "phi": "off"},
            "more": {"source": "file", "path": "exam.jsonl", "format": "question_answer", "licence": "ours", "phi": "off"},
            "exam": {"source": "medqa", "split": "test", "path": "exam.jsonl"},
        },
        "prompts": {"open": {"data": ["notes"], "parts": 2, "filters": []}},
        "sft": {"data": ["notes"], "max_length": 128, "global_batch_size": 2, "learning_rate": 1e-3},
        "benchmarks": [], "wandb": "off",
    } | changes  # fmt: skip
    (folder / "asking.yaml").write_text(yaml.safe_dump(data))
    return folder / "asking.yaml"


def planned(folder: Path, **changes: Any) -> Plan:
    file = recipe_of(folder, **changes)
    return build_plan(recipe.load(file), folder / "store", folder)


def computed(root: Path, plan: Plan, *names: str) -> None:
    for stage in plan.until(names).stages:
        worker.run(worker.Job(folder=store.prepare(root, stage), machine=Machine()))


def test_no_evaluation_prompt_is_among_them_though_no_filter_says_so_and_all_tell_of_them(tmp_path: Path):
    root = tmp_path / "store"
    plan = planned(tmp_path)
    stage = plan.stage("prompts.open")
    assert [use.name for use in plan.stage("data.sft").params.filters] == ["exact_dedup", "decontaminate"]  # type: ignore[attr-defined]
    assert [use.name for use in stage.params.filters] == ["exact_dedup", "decontaminate"]  # type: ignore[attr-defined]
    assert set(stage.inputs) == {"source.notes", "heldout.exam"} and stage.row == "cpu" and stage.kind.light
    cli = CliRunner()
    common = [str(tmp_path / "asking.yaml"), "--store", str(root)]
    listed = cli.invoke(app, ["plan", *common], env={"COLUMNS": "200"}).output
    assert "decontaminate: data.sft, prompts.open against exam" in " ".join(listed.split())
    assert "prompts.open is not made yet" in str(cli.invoke(app, ["data", "preview", *common, "--prompts", "open"]).output)
    computed(root, plan, "prompts.open")
    rows = cli.invoke(app, ["data", "preview", *common, "--source", "notes"]).output  # what they ask is not what is learnt of them
    assert "of source.notes: before filters and mix" in " ".join(rows.split()) and "It blocks cyclooxygenase." in rows
    computed(root, plan, "manifest")
    counts = store.counts(store.folder(root, stage))
    assert sum(counts["dropped"]["decontaminate"].values()) == 2 and counts["records"] == 32
    texts = [row.prompt[-1].content for row in read_records(store.folder(root, stage) / "records.parquet") if isinstance(row, Prompt)]
    assert len(texts) == 32 and not any("gardener" in text for text in texts)
    assert "32 prompts, in 2 parts" in cli.invoke(app, ["plan", *common], env={"COLUMNS": "200"}).output
    shown = cli.invoke(app, ["data", "preview", *common, "--prompts", "open", "-n", "2"])
    assert shown.exit_code == 0 and "2 rows of prompts.open" in shown.output and "[user] " in shown.output, shown.output
    for wrong, said in ((["--prompts", "opn"], "did you mean 'open'"), ([], "give one of --source NAME, --prompts NAME and --pairs ROUND")):
        assert said in " ".join(cli.invoke(app, ["data", "preview", *common, *wrong]).output.split())
    folder = store.folder(root, plan.stage("manifest"))
    told = json.loads((folder / "manifest.json").read_text())
    assert told["sources"]["notes"]["trained_on_in"] == ["sft"] and told["sources"]["notes"]["asked_in"] == ["prompts.open"]
    assert told["sets"]["prompts.open"]["kind"] == "prompt" and "asked_in" not in told["sources"]["exam"]
    assert store.counts(folder)["records"] == told["sets"]["sft"]["trained_rows"]
    card = (folder / "DATA_CARD.md").read_text()
    assert "## Asked in prompts.open" in card and "trained on in sft; asked in prompts.open" in card
    assert "32 prompts are in the mix" in card


def test_a_recipe_without_prompts_has_no_stage_and_none_of_its_keys_knows_of_them(tmp_path: Path):
    with_, without = planned(tmp_path), planned(tmp_path, prompts={})
    keys = {stage.name: stage.key for stage in with_.stages}
    other = {stage.name: stage.key for stage in without.stages}
    assert keys.keys() - other.keys() == {"prompts.open"}
    assert {name for name in other if keys[name] != other[name]} <= {"manifest", "export", "report"}
    assert "prompts" not in without.stage("report").params.stored()["recipe"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": {"open": {"data": ["nots"]}}}, r"prompts\.open\.data: no source is named 'nots'.*did you mean 'notes'"),
        ({"prompts": {"open": {"data": ["exam"]}}}, r"prompts\.open\.data: split 'test' of medqa is for evaluation only"),
        ({"prompts": {"open": {"data": ["notes", "notes"]}}}, r"prompts\.open\.data: source 'notes' stands twice"),
        ({"prompts": {"open": {"data": ["notes"], "parts": 0}}}, r"prompts\.open\.parts: .*found 0"),
        ({"prompts": {"open": {"data": [{"name": "notes", "epochs": 2}]}}}, r"prompts\.open\.data\.0\.epochs: expected 1 at most, found 2"),
        ({"prompts": {"open": {"data": ["notes"], "filters": ["exact_dedupe"]}}}, r"unknown filter 'exact_dedupe'"),
        ({"evaluate": {"conversations": "more"}, "prompts": {"open": {"data": ["more"]}}}, r"source 'more' is also trained on"),
    ],
)
def test_prompts_that_cannot_be_are_refused_while_planning(tmp_path: Path, changes: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        planned(tmp_path, **changes)


def test_a_policy_samples_one_part_and_nothing_of_another(tmp_path: Path, run_stage: Run, shelf: Path):
    talks = [Conversation(f"c{n}", "made", (*asked(f"{ASKED[n % 4].format(FACTS[n % 8][0])} {n}"), Message("assistant", "Yes.")))
             for n in range(60)]  # fmt: skip
    _, part, counts = run(tmp_path / "set", {"source.talks": made(tmp_path, "talks", talks, "conversation")}, count=3)
    wanted = {"name": "samples", "max_rows": None, "max_new_tokens": 6, "temperature": 1.0, "num_answers": 3, "system_prompt": None}
    inputs = {"policy": shelf / "base", "prompts.samples": tmp_path / "set"}
    found = {}
    for number in (1, 2, 3):
        given = {"sets": [{**wanted, "part": number}], "max_length": 256, "seed": 5}
        out, told = run_stage("sample", f"part-{number}", given, inputs, MACHINE)
        found[number] = {row.prompt_id for row in samples.read(out / "samples.parquet")}
        assert told["sets"]["samples"]["answers"] == 3 * counts["parts"][str(number)]
    assert all(found[number] == {name for name in part if part[name] == number} for number in found)
    given = {"sets": [wanted], "max_length": 256, "seed": 5}
    assert run_stage("sample", "all", given, inputs, MACHINE)[1]["sets"]["samples"]["answers"] == 180
    with pytest.raises(UserError, match=r"none of the 0 prompts of 'samples' can be answered"):
        run_stage("sample", "none", {**given, "sets": [{**wanted, "part": 4}]}, inputs, MACHINE)


def test_the_samples_of_a_part_are_counted_before_they_are_drawn(tmp_path: Path):
    plan = planned(tmp_path)
    wanted = engine_params.PromptSet(name="samples", max_rows=None, system_prompt=None, part=2, temperature=1.0, num_answers=5)
    asked = engine_params.AnswersParams(sets=(wanted,), max_length=128, seed=0)
    stage = staged.stage(
        "sample.one", "sample", asked.stored(), {"policy": plan.stage("sft"), "prompts.samples": plan.stage("prompts.open")}
    )
    assert isinstance(stage, Stage) and stage.row == "generate" and stage.kind.writes and stage.kind.apart
    size = row_counts.Size(33, 40.0, 0.0, True, 0.0)
    (reading,) = evaluation_tokens.written(stage, {"prompts.open": size})
    assert (reading.answers, reading.answer_tokens) == (17 * 5, 64)
