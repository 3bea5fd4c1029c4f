"""A language model behind an OpenAI-compatible endpoint as a judge: a rubric, two answers, both orders, and no reply paid for twice.

In: two answers to each prompt, and a file of the replies that were had before. Out: a verdict of each, and what it cost. A reply is kept
under a hash of the whole request; one that is no verdict is asked for once more, with another seed, and is then missing.
"""

import hashlib
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Message
from rounds.train.config.judging import Endpoint, Llm
from rounds.train.generation.samples import Sample
from rounds.train.judging import privacy, rubric
from rounds.train.judging.verdicts import Verdict

logger = logging.getLogger(__name__)

REPLIES = "replies.jsonl"
_FORM = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "winner": {"type": "string", "enum": ["A", "B", "tie"]}},
    "required": ["reason", "winner"],
    "additionalProperties": False,
}
_ASKS = 'Reply with one JSON object and nothing else: {"reason": "...", "winner": "A" or "B" or "tie"}'
_VALUES = {"A": 1.0, "B": -1.0, "tie": 0.0}
_LONGEST_WAIT = 60.0
"""Seconds that an endpoint which says 429 is waited for, whatever it asks."""
_DEAD_AFTER = 10
"""So many requests in a row without a reply: the endpoint is gone, and asking on would only spend calls."""


@dataclass
class _Spent:
    """What an endpoint was asked, over all attempts of a stage: one lock, one file."""

    path: Path
    replies: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: int = 0
    tokens: int = 0
    reserved: int = 0
    """Tokens that requests under way may still take."""
    failed_in_a_row: int = 0
    served: Counter[str] = field(default_factory=Counter)
    """Models, with their fingerprints, that replies came from."""
    lock: threading.Lock = field(default_factory=threading.Lock)


def compare(
    judge: Llm,
    endpoint: Endpoint,
    instructions: str,
    asked: Sequence[tuple[tuple[Message, ...], Sample, Sample]],
    folder: Path,
    offline: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[Verdict], dict[str, Any]]:
    """Compare two answers to each prompt in both orders, in the order given; returns verdicts, and counts of calls and tokens.

    Raises `UserError` for an endpoint that may not be asked, that is gone, or where a limit of the judge ends the work: the replies that
    were had are in `folder`, and another attempt goes on from them.
    """
    privacy.check(judge, endpoint, offline)
    spent = _read(folder / REPLIES)
    texts = [
        rubric.asked(instructions, prompt, one.answer, other.answer)
        for prompt, *both in asked
        for one, other in (both, both[::-1])
    ]  # fmt: skip
    wanted = list(dict.fromkeys(texts))  # one text is asked once
    client = _client(endpoint)
    stop = threading.Event()
    sides: dict[str, float | str] = {}

    def side(text: str) -> float | str:
        if stop.is_set():
            return "not_asked"
        try:
            return _side(judge, endpoint, client, spent, text)
        except UserError:
            stop.set()
            raise

    with client, ThreadPoolExecutor(endpoint.parallel) as pool:
        try:
            for text, found in zip(wanted, pool.map(side, wanted), strict=True):
                sides[text] = found
                progress(len(sides))
        except UserError as error:
            raise UserError(
                f"judge {judge.model} at endpoint {judge.endpoint}: {error}. Of {len(wanted):,} questions {len(sides):,} are settled, and "
                f"the {len(spent.replies):,} replies in {folder / REPLIES} are kept: another run goes on from them"
            ) from None
        finally:  # what still waits for its turn is not asked
            stop.set()
    if len(spent.served) > 1:
        logger.warning("endpoint %s changed its model in the middle: %s", judge.endpoint, dict(spent.served))
    shown, swapped = (list(map(sides.__getitem__, texts[place::2])) for place in range(2))
    found = [_verdict(first, second, *each) for (_, first, second), *each in zip(asked, shown, swapped, strict=True)]
    return found, {"calls": spent.calls, "tokens": spent.tokens, "served": dict(spent.served)}


def read_verdict(reply: str) -> float | None:
    """Return what a reply says, 1 for A, -1 for B, 0 for a tie; None for anything but the one JSON object, in a code fence or not."""
    text = reply.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.strip("`").removeprefix("json").strip()
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    winner = said.get("winner") if isinstance(said, dict) else None
    return _VALUES.get(winner) if isinstance(winner, str) else None


def _client(endpoint: Endpoint) -> Any:
    try:
        import openai
    except ImportError:
        raise UserError('a judge behind an endpoint needs the package openai: pip install "rounds[judges]"') from None
    key = os.environ.get(endpoint.key_variable) if endpoint.key_variable else "none"
    if not key:
        raise UserError(f"the endpoint's key is to be in the variable {endpoint.key_variable}, which is not set here")
    # No redirect and, on this machine, no proxy: either would carry the texts elsewhere.
    http = openai.DefaultHttpxClient(trust_env=not privacy.is_here(endpoint.base_url), follow_redirects=False)
    return openai.OpenAI(base_url=endpoint.base_url, api_key=key, max_retries=0, timeout=endpoint.timeout_seconds, http_client=http)


def _side(judge: Llm, endpoint: Endpoint, client: Any, spent: _Spent, text: str) -> float | str:
    """Return the preference for answer A, or why there is none after two attempts."""
    why = ""
    for attempt in range(2):
        request = _request(judge, text, attempt)
        name = hashlib.sha256(json.dumps([endpoint.base_url, request], sort_keys=True).encode()).hexdigest()
        reply = spent.replies.get(name) or _ask(judge, client, spent, name, request, _secret(endpoint))
        if "error" in reply:
            why = "no_reply"
            if attempt == 0:
                time.sleep(reply.get("wait", 0.0))
            continue
        value = read_verdict(reply["reply"])
        if value is not None and not reply["cut"]:
            return value
        why = "reply_cut" if reply["cut"] else "reply_is_no_verdict"
    return why


def _request(judge: Llm, text: str, attempt: int) -> dict[str, Any]:
    return {
        "model": judge.model,
        "messages": [{"role": "user", "content": f"{text}\n{_ASKS}"}],
        "temperature": 0.0,
        "seed": attempt,
        "max_tokens": judge.max_new_tokens,
        "response_format": {"type": "json_schema", "json_schema": {"name": "verdict", "schema": _FORM, "strict": True}},
    }


def _ask(judge: Llm, client: Any, spent: _Spent, name: str, request: dict[str, Any], secret: str) -> dict[str, Any]:
    """Make one call, if the limits allow it, and write down what came of it."""
    import openai

    # No tokenizer has more tokens than bytes.
    reserved = len(request["messages"][0]["content"].encode()) + judge.max_new_tokens
    with spent.lock:
        if spent.calls >= judge.max_calls:
            raise UserError(f"max_calls {judge.max_calls:,} is reached; raise it to have the rest judged")
        if spent.tokens + spent.reserved + reserved > judge.max_tokens:
            raise UserError(
                f"max_tokens {judge.max_tokens:,} would be passed: {spent.tokens:,} are spent, and the next call may take {reserved:,}; "
                "raise it to have the rest judged"
            )
        if spent.failed_in_a_row >= _DEAD_AFTER:
            raise UserError(f"{_DEAD_AFTER} requests in a row had no reply; see that the endpoint answers")
        spent.calls += 1
        spent.reserved += reserved
    row: dict[str, Any] = {"request": name}
    try:
        answer = client.chat.completions.create(**request)
        choice, usage = answer.choices[0], answer.usage
        row |= {"reply": choice.message.content or "", "cut": choice.finish_reason == "length", "model": answer.model}
        row |= {"fingerprint": answer.system_fingerprint, "tokens": usage.total_tokens if usage else reserved}
    except openai.AuthenticationError as error:
        row |= {"error": _said(error, secret), "refused": True}
    except (openai.OpenAIError, ValueError, TypeError, AttributeError, IndexError) as error:  # a body that is no completion
        row |= {"error": _said(error, secret), "wait": _wait(error)}
    with spent.lock:
        spent.reserved -= reserved
        _count(spent, row)
        with spent.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    if "error" in row:
        logger.warning("a judge's request had no reply: %s", row["error"])
    if row.get("refused"):
        raise UserError(f"it refuses the key: {row['error']}")
    return row


def _wait(error: Exception) -> float:
    """Return how many seconds an endpoint wants to be left alone."""
    response = getattr(error, "response", None)
    if getattr(response, "status_code", None) != 429:
        return 0.0
    try:
        return min(max(float(response.headers.get("retry-after", 1.0)), 0.0), _LONGEST_WAIT)  # type: ignore[union-attr]
    except ValueError:  # a date
        return 1.0


def _secret(endpoint: Endpoint) -> str:
    return os.environ.get(endpoint.key_variable, "") if endpoint.key_variable else ""


def _said(error: Exception, secret: str) -> str:
    """Return what an error says, without the key: some endpoints say it back."""
    said = f"{type(error).__name__}: {error}"
    return (said.replace(secret, "(key)") if secret else said)[:300]


def _read(path: Path) -> _Spent:
    """Read what was asked before. A line that was cut off by a kill is taken away; a failed request counts as a call and is asked again."""
    spent = _Spent(path)
    if not path.is_file():
        return spent
    whole = b""
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        whole += line
        spent.calls += 1
        _count(spent, json.loads(line))
    spent.failed_in_a_row = 0
    if len(whole) < path.stat().st_size:
        path.write_bytes(whole)
    return spent


def _count(spent: _Spent, row: dict[str, Any]) -> None:
    """Add a line of the file to what is known."""
    if "error" in row:
        spent.failed_in_a_row += 1
        return
    spent.failed_in_a_row = 0
    spent.replies[row["request"]] = row
    spent.tokens += row["tokens"]
    spent.served[f"{row['model']} {row['fingerprint'] or ''}".strip()] += 1


def _verdict(first: Sample, second: Sample, shown: float | str, swapped: float | str) -> Verdict:
    forward = None if isinstance(shown, str) else shown
    backward = None if isinstance(swapped, str) else 0.0 - swapped  # A is the second answer here
    reason = next((side for side in (shown, swapped) if isinstance(side, str)), "")
    return Verdict(first.prompt_id, first.number, second.number, forward, backward, reason, first.tokens, second.tokens)
