"""Texts from an OpenAI-compatible endpoint: within limits, privately, and no reply paid for twice.

In: requests, as the chat completions of the package openai take them, and a file of the replies that were had before. Out: a row of that
file for each. A reply is kept under a hash of address and whole request; a request that failed counts as a call and may be made again.
"""

import hashlib
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from rounds.data_prep.errors import UserError
from rounds.train.config.judging import Endpoint
from rounds.train.generation import privacy
from rounds.train.generation.privacy import Asker

logger = logging.getLogger(__name__)

REPLIES = "replies.jsonl"
Request = dict[str, Any]
Row = dict[str, Any]
"""A line of the file: `request`, the hash; then `reply`, `cut`, `ended`, `model`, `fingerprint`, `tokens` of request and reply, `written`
of the reply; or `error`."""
T = TypeVar("T")
R = TypeVar("R")
_LONGEST_WAIT = 60.0
"""Seconds that an endpoint which says 429 is waited for, whatever it asks."""
_DEAD_AFTER = 10
"""So many requests in a row without a reply: the endpoint is gone, and asking on would only spend calls."""


class Server:
    """An endpoint, what it was asked over all attempts of a stage, and what it may be asked yet. To be closed: `with Server(...)`."""

    def __init__(self, asker: Asker, endpoint: Endpoint, folder: Path, offline: bool, who: str, allows: str = privacy.BY_RECIPE) -> None:
        """Raises `UserError` as `privacy.check` does, and where the package or the key is not there."""
        privacy.check(asker, endpoint, offline, allows)
        self.asker, self.endpoint, self.who = asker, endpoint, who
        self.path = folder / REPLIES
        self.replies: dict[str, Row] = {}
        self.calls = self.tokens = 0
        self.served: Counter[str] = Counter()
        """Models, with their fingerprints, that replies came from."""
        self._reserved = 0
        """Tokens that requests under way may still take."""
        self._failed_in_a_row = 0
        self._lock = threading.Lock()
        self._read()
        self._client = _client(endpoint)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()

    def each(self, wanted: Sequence[T], ask: Callable[[T], R], progress: Callable[[int], None]) -> dict[T, R]:
        """Let `ask` settle each of some questions, several at once, in any order; `progress` is told how many are settled.

        Raises `UserError` when one does: no other is begun then, and what was replied is kept.
        """
        stopped = threading.Event()
        found: dict[T, R] = {}

        def one(question: T) -> R | None:
            if stopped.is_set():
                return None
            try:
                return ask(question)
            except UserError:
                stopped.set()
                raise

        with ThreadPoolExecutor(self.endpoint.parallel) as pool:
            try:
                for question, answer in zip(wanted, pool.map(one, wanted), strict=True):
                    if answer is not None:
                        found[question] = answer
                        progress(len(found))
            except UserError as error:
                raise UserError(
                    f"{self.who} {self.asker.model} at endpoint {self.asker.endpoint}: {error}. Of {len(wanted):,} questions "
                    f"{len(found):,} are settled, and the {len(self.replies):,} replies in {self.path} are kept: another run goes on from "
                    "them"
                ) from None
            finally:  # what still waits for its turn is not asked
                stopped.set()
        if len(self.served) > 1:
            logger.warning("endpoint %s changed its model in the middle: %s", self.asker.endpoint, dict(self.served))
        return found

    def attempts(self, requests: Sequence[Request]) -> Iterator[Row]:
        """Yield what each request brings, one after the other, waiting where the endpoint asks for it; those after a good one need not be
        asked for. Raises `UserError` for a limit that is reached, a key that is refused, and an endpoint that is gone."""
        for place, request in enumerate(requests):
            name = hashlib.sha256(json.dumps([self.endpoint.base_url, request], sort_keys=True).encode()).hexdigest()
            row = self.replies.get(name) or self._ask(name, request)
            yield row
            if "error" in row and place + 1 < len(requests):
                time.sleep(row.get("wait", 0.0))

    def counts(self) -> dict[str, Any]:
        """Return what it cost, over all attempts, and who replied."""
        return {"calls": self.calls, "tokens": self.tokens, "served": dict(self.served)}

    def _ask(self, name: str, request: Request) -> Row:
        """Make one call, if the limits allow it, and write down what came of it."""
        import openai

        # No tokenizer has more tokens than bytes.
        reserved = sum(len(each["content"].encode()) for each in request["messages"]) + request["max_tokens"]
        with self._lock:
            self._refuse_beyond(reserved)
            self.calls += 1
            self._reserved += reserved
        row: Row = {"request": name}
        secret = os.environ.get(self.endpoint.key_variable, "") if self.endpoint.key_variable else ""
        try:
            answer = self._client.chat.completions.create(**request)
            choice, usage = answer.choices[0], answer.usage
            row |= {
                "reply": _text(choice.message.content),
                "cut": choice.finish_reason == "length",
                "ended": choice.finish_reason == "stop",
            }
            row |= {"model": answer.model, "fingerprint": answer.system_fingerprint}
            counted = (
                [each if isinstance(each, int) else None for each in (usage.total_tokens, usage.completion_tokens)] if usage else [None] * 2
            )
            row |= {"tokens": reserved if counted[0] is None else counted[0], "written": counted[1]}
        except openai.AuthenticationError as error:
            row |= {"error": _said(error, secret), "refused": True}
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, IndexError) as error:  # a body that is no completion
            row |= {"error": _said(error, secret), "wait": _wait(error)}
        with self._lock:
            self._reserved -= reserved
            self._count(row)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if "error" in row:
            logger.warning("a request to endpoint %s had no reply: %s", self.asker.endpoint, row["error"])
        if row.get("refused"):
            raise UserError(f"it refuses the key: {row['error']}")
        return row

    def _refuse_beyond(self, reserved: int) -> None:
        asker = self.asker
        if self.calls >= asker.max_calls:
            raise UserError(f"max_calls {asker.max_calls:,} is reached; raise it to have the rest done")
        if self.tokens + self._reserved + reserved > asker.max_tokens:
            raise UserError(
                f"max_tokens {asker.max_tokens:,} would be passed: {self.tokens:,} are spent, and the next call may take {reserved:,}; "
                "raise it to have the rest done"
            )
        if self._failed_in_a_row >= _DEAD_AFTER:
            raise UserError(f"{_DEAD_AFTER} requests in a row had no reply; see that the endpoint answers")

    def _read(self) -> None:
        """Read what was asked before. A line that was cut off by a kill is taken away."""
        if not self.path.is_file():
            return
        whole = b""
        for line in self.path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            whole += line
            self.calls += 1
            self._count(json.loads(line))
        self._failed_in_a_row = 0
        if len(whole) < self.path.stat().st_size:
            self.path.write_bytes(whole)

    def _count(self, row: Row) -> None:
        """Add a line of the file to what is known."""
        if "error" in row:
            self._failed_in_a_row += 1
            return
        self._failed_in_a_row = 0
        self.replies[row["request"]] = row
        self.tokens += row["tokens"]
        self.served[f"{row['model']} {row['fingerprint'] or ''}".strip()] += 1


def _client(endpoint: Endpoint) -> Any:
    try:
        import openai
    except ImportError:
        raise UserError(privacy.PACKAGE) from None
    key = os.environ.get(endpoint.key_variable) if endpoint.key_variable else "none"
    if not key:
        raise UserError(f"the endpoint's key is to be in the variable {endpoint.key_variable}, which is not set here")
    # No redirect and, on this machine, no proxy: either would carry the texts elsewhere.
    http = openai.DefaultHttpxClient(trust_env=not privacy.is_here(endpoint.base_url), follow_redirects=False)
    return openai.OpenAI(base_url=endpoint.base_url, api_key=key, max_retries=0, timeout=endpoint.timeout_seconds, http_client=http)


def _text(content: Any) -> str:
    """Return what a reply says. Raises `ValueError` for what is no text, or none that can be written down."""
    if content is not None and not isinstance(content, str):
        raise ValueError(f"the reply's content is no text but {type(content).__name__}")
    (content or "").encode()
    return content or ""


def _wait(error: Exception) -> float:
    """Return how many seconds an endpoint wants to be left alone."""
    response = getattr(error, "response", None)
    if getattr(response, "status_code", None) != 429:
        return 0.0
    try:
        return min(max(float(response.headers.get("retry-after", 1.0)), 0.0), _LONGEST_WAIT)  # type: ignore[union-attr]
    except ValueError:  # a date
        return 1.0


def _said(error: Exception, secret: str) -> str:
    """Return what an error says, without the key: some endpoints say it back."""
    said = f"{type(error).__name__}: {error}"
    return (said.replace(secret, "(key)") if secret else said)[:300]
