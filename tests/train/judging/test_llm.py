"""A judge behind a real server that dies, cuts, answers prose or 429: nothing is paid twice, nothing that cannot be read is a verdict, and
nothing leaves the machine unless it was allowed twice."""

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Message
from rounds.train.config.judging import Endpoint, Llm
from rounds.train.generation import endpoint, privacy
from rounds.train.judging import llm, verdicts
from tests.train.endpoints import Server
from tests.train.judging.answers import sample

pytest.importorskip("openai", reason="the optional package openai is not installed")

KEY = "sk-canary-0123456789"
VERDICT = '{"reason": "made", "winner": "%s"}'


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    made.answer = lambda number, text: VERDICT % "A"
    yield made
    made.http.shutdown()
    made.http.server_close()


def judge(**fields: Any) -> Llm:
    return Llm.model_validate({"kind": "llm", "model": "big", "endpoint": "judge", "rubric": "r.md", "max_new_tokens": 64} | fields)


def asked(count: int = 4):
    prompt = (Message("user", "What helps?"),)
    return [(prompt, sample(0, f"good {n}", 3, prompt_id=f"p{n}"), sample(1, f"bad {n}", 4, prompt_id=f"p{n}")) for n in range(count)]


def compare(server: Server, folder: Path, rows=None, parallel: int = 1, at: dict | None = None, **fields: Any):
    endpoint = Endpoint.model_validate({"base_url": server.url, "parallel": parallel, "timeout_seconds": 20} | (at or {}))
    return llm.compare(judge(**fields), endpoint, "Which is better?", asked() if rows is None else rows, folder)


def prefers_good(number: int, text: str) -> str:
    return VERDICT % ("A" if text.index("good") < text.index("bad") else "B")


def outcomes(found) -> list[float | None]:
    return [each.outcome for each in found]


@pytest.mark.parametrize("parallel", [1, 8])
def test_a_judge_that_reads_wins_through_both_orders_and_one_that_goes_by_place_ties(server: Server, tmp_path: Path, parallel: int):
    server.answer = prefers_good
    found, spent = compare(server, tmp_path, asked(20), parallel)
    assert outcomes(found) == [1.0] * 20 and spent == {"calls": 40, "tokens": 2000, "served": {"made-1": 40}}
    turned, _ = compare(server, tmp_path, [(prompt, b, a) for prompt, a, b in asked(20)], parallel)
    assert outcomes(turned) == [0.0] * 20 and len(server.bodies) == 40, "the same questions, turned round: nothing is asked again"
    server.answer = lambda number, text: VERDICT % "A"
    placed, _ = compare(server, tmp_path, asked(20), parallel, model="other")
    assert outcomes(placed) == [0.5] * 20 and verdicts.counts(placed)["first_place_share"] == 1.0


def test_a_request_asks_for_a_form_with_a_seed_and_greedily(server: Server, tmp_path: Path):
    compare(server, tmp_path, asked(1))
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["seed"], body["max_tokens"]) == ("big", 0.0, 0, 64)
    assert body["response_format"]["json_schema"]["schema"]["properties"]["winner"]["enum"] == ["A", "B", "tie"]
    assert body["messages"][0]["content"].startswith("Which is better?")


@pytest.mark.parametrize(
    ("first", "second", "outcome", "reason"),
    [
        ("The first is better.", None, 1.0, ""),
        ("The first is better.", "Really: A.", None, "reply_is_no_verdict"),
        ('{"winner": "C"}', '["A"]', None, "reply_is_no_verdict"),
        ("die", None, 1.0, ""),
        ("die", "die", None, "no_reply"),
        ((429, {"Retry-After": "0.01"}, "{}"), None, 1.0, ""),
        ((429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, "{}"), (500, {}, "broken"), None, "no_reply"),
        ((200, {}, "<html>no</html>"), (200, {"Content-Type": "text/html"}, "<html>no</html>"), None, "no_reply"),
        ((200, {"X-Dies": "1"}, "{" + " " * 400 + "}"), (200, {}, '{"choices": []}'), None, "no_reply"),
        ("cut", "cut", None, "reply_cut"),
        ((307, {"Location": "http://192.0.2.1/v1"}, ""), (307, {"Location": "http://192.0.2.1/v1"}, ""), None, "no_reply"),
    ],
)
def test_one_retry_with_another_seed_and_then_it_is_missing(server: Server, tmp_path: Path, first, second, outcome, reason):
    """The first order's question fails once or twice; `None` is a verdict."""

    def answer(number: int, text: str):
        said = {1: first, 2: second}.get(number) or prefers_good(number, text)
        return (200, {}, server.completion(VERDICT % "A", cut=True)) if said == "cut" else said

    server.answer = answer
    (found,), _ = compare(server, tmp_path, asked(1))
    assert (found.outcome, found.reason) == (outcome, reason)
    assert [body["seed"] for body in server.bodies] == [0, 1, 0]
    assert found.backward == 1.0, "the other order has its reply"


def test_a_killed_stage_pays_nothing_twice(server: Server, tmp_path: Path):
    server.answer = lambda number, text: "die" if number > 5 else prefers_good(number, text)
    with pytest.raises(
        UserError, match=r"10 requests in a row had no reply; see that the endpoint answers. Of 40 questions 1\d? are settled"
    ):
        compare(server, tmp_path, asked(20))
    file = tmp_path / endpoint.REPLIES
    had = [line for line in file.read_text().splitlines() if '"reply"' in line]
    assert len(had) == 5
    file.write_bytes(file.read_bytes() + b'{"request": "cut off in the mid')
    before = len(server.bodies)
    server.answer = prefers_good
    found, spent = compare(server, tmp_path, asked(20), 4)
    assert outcomes(found) == [1.0] * 20
    assert len(server.bodies) - before == 35 and spent["calls"] == len(server.bodies), "40 less the 5 that were had"
    compare(server, tmp_path, asked(20))
    assert len(server.bodies) - before == 35


def test_limits_hold_before_a_call_and_the_work_goes_on_when_they_are_raised(server: Server, tmp_path: Path):
    server.answer = prefers_good
    with pytest.raises(UserError, match=r"max_calls 5 is reached; raise it to have the rest done. Of 8 questions 5 are settled"):
        compare(server, tmp_path, max_calls=5)
    assert len(server.bodies) == 5
    with pytest.raises(UserError, match=r"max_tokens 400 would be passed: 250 are spent"):
        compare(server, tmp_path, max_tokens=400)
    assert len(server.bodies) == 5
    found, spent = compare(server, tmp_path)
    assert outcomes(found) == [1.0] * 4 and spent["calls"] == len(server.bodies) == 8
    with pytest.raises(UserError, match="max_calls 9 is reached"):
        compare(server, tmp_path, asked(30), 8, max_calls=9)
    assert len(server.bodies) == 9, "also with several under way"


def test_one_text_is_asked_once_and_a_change_of_model_is_said(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    server.answer = prefers_good
    (prompt, one, other), *_ = asked()
    twins = [(prompt, replace(one, prompt_id=each), replace(other, prompt_id=each)) for each in ("p", "q")]
    assert outcomes(compare(server, tmp_path, twins, 8)[0]) == [1.0, 1.0] and len(server.bodies) == 2
    server.model = "made-2"
    _, spent = compare(server, tmp_path, [*twins, *asked()])
    assert spent["served"] == {"made-1": 2, "made-2": 6} and "changed its model in the middle" in caplog.text


def test_the_key_is_sent_and_written_nowhere(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    at = {"key_variable": "JUDGE_KEY"}
    with pytest.raises(UserError, match="in the variable JUDGE_KEY, which is not set here"):
        compare(server, tmp_path, at=at)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.answer = lambda number, text: (401, {}, json.dumps({"error": {"message": f"wrong key {KEY}"}}))
    with pytest.raises(UserError, match=r"it refuses the key: .*wrong key \(key\)") as refused:
        compare(server, tmp_path, at=at)
    assert server.key == f"Bearer {KEY}" and len(server.bodies) == 1, "no use in asking on"
    server.answer = lambda number, text: (400, {}, json.dumps({"error": {"message": f"bad {KEY}"}}))
    assert outcomes(compare(server, tmp_path, asked(2), at=at)[0]) == [None, None]
    assert KEY not in caplog.text + str(refused.value) + "".join(file.read_text() for file in tmp_path.iterdir())


def test_nothing_leaves_the_machine_unless_allowed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Asked(Exception):
        pass

    def blocked(*args: Any, **kwargs: Any) -> None:
        raise Asked

    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    monkeypatch.setattr(socket.socket, "connect", blocked)
    away = Endpoint(base_url="https://judge.example.org/v1")
    for recipe, cluster, says in (
        (False, False, "for this judge in the recipe and allow_outside: true for this endpoint in the cluster file"),
        (True, False, "true for this endpoint in the cluster file if"),
        (False, True, "true for this judge in the recipe if"),
    ):
        there = away.model_copy(update={"allow_outside": cluster})
        with pytest.raises(UserError, match=says):
            llm.compare(judge(allow_outside=recipe), there, "Which?", asked(), tmp_path)
    both = away.model_copy(update={"allow_outside": True})
    privacy.check(judge(allow_outside=True), both, offline=False)
    with pytest.raises(UserError, match="the cluster file says offline: true"):
        llm.compare(judge(allow_outside=True), both, "Which?", asked(), tmp_path, offline=True)
    assert not list(tmp_path.iterdir())
    for host in ("localhost", "127.0.0.1", "[::1]"):
        privacy.check(judge(), Endpoint(base_url=f"http://{host}:8000/v1"), offline=True)
    for host in ("localhost.example.org", "127.0.0.1.example.org", "10.0.0.1", "0.0.0.0"):
        with pytest.raises(UserError, match="is another machine"):
            privacy.check(judge(), Endpoint(base_url=f"http://{host}/v1"), offline=False)


def test_a_proxy_of_the_environment_does_not_get_what_is_for_this_machine(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.answer = prefers_good
    assert outcomes(compare(server, tmp_path)[0]) == [1.0] * 4


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        (VERDICT % "A", 1.0),
        (VERDICT % "B", -1.0),
        ('```json\n{"winner": "tie"}\n```', 0.0),
        ("A", None),
        ("", None),
        ("{}", None),
        ('{"winner": ["A"]}', None),
        ('{"winner": "a"}', None),
        ("[" * 100_000, None),
        (f"I think {VERDICT % 'A'}", None),
    ],
)
def test_a_reply_is_a_verdict_or_nothing(reply, value):
    assert llm.read_verdict(reply) == value
