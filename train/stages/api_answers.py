"""Stage `api_answers`: what a model behind an OpenAI-compatible endpoint writes to held-out prompts, to stand beside policies of ours.

In: `prompts.NAME` for each set that is asked for. Out: `NAME.parquet` as stage `answers` writes it, with tokens as the endpoint counts them
and neither token ids nor log-probabilities; `replies.jsonl`, every reply under a hash of its request, so that none is paid for twice.
An answer that is not to be had after two attempts is missing, and counted; it is no empty answer. Counts: as of `answers`, what it cost.
"""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rounds.data_prep import progress, records
from rounds.data_prep.errors import UserError
from rounds.data_prep.turns import with_system
from rounds.train.config.cluster import Machine
from rounds.train.engine.params import ApiAnswersParams, PromptSet
from rounds.train.engine.records import Counts
from rounds.train.generation import asked, decoding, privacy, samples
from rounds.train.generation.endpoint import Row, Server


class Ask(NamedTuple):
    """One answer to one prompt."""

    set_name: str
    prompt_id: str
    number: int


def run(params: ApiAnswersParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Ask for all answers that are not there yet. Raises `UserError` for an endpoint that may not or cannot be asked, where a limit ends
    the work, and where too many answers are missing; what was replied is kept."""
    endpoint = privacy.endpoint_of(params, machine.endpoints)
    requests: dict[Ask, dict[str, Any]] = {}
    for wanted in params.sets:
        requests |= _requests(params, wanted, inputs[f"prompts.{wanted.name}"])
    with Server(params, endpoint, out, machine.offline, "model", privacy.BY_COMMAND) as server:
        found = server.each(
            list(requests),
            lambda ask: _reply(server, requests[ask]),
            lambda done: progress.write(out, done, len(requests), "answers"),
        )
        told = server.counts()
    missing = {ask: row["error"] for ask, row in found.items() if "error" in row}
    if len(missing) > params.max_missing_share * len(found):
        raise UserError(
            f"model {params.model} at endpoint {params.endpoint}: {len(missing):,} of {len(found):,} answers were not to be had, more than "
            f"a share of {params.max_missing_share:g}; the last: {list(missing.values())[-1]}. Another run asks for them again"
        )
    sets = {wanted.name: _written(wanted, requests, found, out) for wanted in params.sets}
    lost = Counter(ask.set_name for ask in missing)
    return {"sets": sets, "dropped": {name: {"no_reply": lost[name]} for name in sets if lost[name]}, **told}


def _requests(params: ApiAnswersParams, wanted: PromptSet, source: Path) -> dict[Ask, dict[str, Any]]:
    made = {}
    for row in asked.first(source, wanted):
        turns = with_system(records.prompt_of(row), wanted.system_prompt)
        for number in range(wanted.num_answers):
            made[Ask(wanted.name, row.id, number)] = {
                "model": params.model,
                "messages": [{"role": turn.role, "content": turn.content} for turn in turns],
                "temperature": wanted.temperature,
                "top_p": wanted.top_p,
                "max_tokens": wanted.max_new_tokens,
                "seed": decoding.seed_of(params.seed, row.id, number) >> 32,  # some servers take 31 bits
            }
    return made


def _reply(server: Server, request: dict[str, Any]) -> Row:
    """Return what was replied or, after two attempts, why nothing was."""
    row: Row = {}
    for row in server.attempts([request, request]):
        if "error" not in row:
            if row.get("written") is None:
                raise UserError("it does not say how many tokens it writes (`usage` of its replies), so lengths would be unknown")
            return row
    return row


def _written(wanted: PromptSet, requests: Mapping[Ask, dict[str, Any]], found: Mapping[Ask, Row], out: Path) -> dict[str, Any]:
    rows = [
        samples.Sample(
            ask.prompt_id, ask.number, row["reply"], [], row["written"], row["ended"], logprob=math.nan, seed=requests[ask]["seed"]
        )
        for ask, row in found.items()
        if ask.set_name == wanted.name and "error" not in row
    ]
    samples.write(samples.file_of(out, wanted.name), samples.table(rows))
    return samples.counts(rows)
