"""How many rows, tokens and steps each stage has or will have, before anything is fetched. Reads no data and no torch.

Finished stages are counted. For the others the sizes follow from those that the sources publish, as if no filter dropped a
row, so they are upper bounds; tokens of a source that states none are taken from the paper's mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rounds.data_prep import sources
from rounds.data_prep.mix import counts as mix_counts
from rounds.data_prep.schema import DataParams, Mix, RowsUse, SourceParams
from rounds.train.engine import store
from rounds.train.engine.graph import Stage
from rounds.train.engine.params import AnswersParams, PackParams, PairsParams, PromptSet, PromptsParams
from rounds.train.plan.pipeline import Plan

MEAN_TOKENS = 538
"""Tokens of a conversation whose source states no mean: those of Med42-v2, 5,321 steps of 32 x 8,192 tokens in two epochs over
1,296,471 samples (arXiv 2408.06142, tables 2 and 5)."""
FILL = 0.99
"""Share of a packed row that best-fit packing fills where conversations are much shorter than a row."""


@dataclass(frozen=True)
class Size:
    """Rows of a stage's result, and the mean tokens of a row's prompt and of one of its answers."""

    rows: int
    prompt_tokens: float = 0
    answer_tokens: float = 0
    counted: bool = True
    """False where the figure follows from published sizes instead of a finished stage."""
    assumed_share: float = 0.0
    """Share of the rows whose mean tokens are assumed."""

    @property
    def tokens(self) -> float:
        """All tokens of the conversations, or of prompts with one answer each."""
        return self.rows * (self.prompt_tokens + self.answer_tokens)


_UNKNOWN = Size(0, MEAN_TOKENS / 2, MEAN_TOKENS / 2, False, 1.0)


def sizes(plan: Plan, root: Path) -> dict[str, Size]:
    """Return the size of every stage for which one is known, by the stage's name."""
    found: dict[str, Size] = {}
    by_key: dict[str, Size] = {}  # two users of one stage may call it by two names
    for stage in plan.stages:  # parents come first
        counts = store.counts(store.folder(root, stage))
        size = _size(stage, counts, _parents(stage, by_key))
        if size is not None:
            found[stage.name] = by_key[stage.key] = size
    return found


def _parents(stage: Stage, by_key: Mapping[str, Size]) -> dict[str, Size]:
    parents = {name: parent.key for name, parent in stage.inputs.items() if isinstance(parent, Stage)}
    return {name: by_key[key] for name, key in parents.items() if key in by_key}


def mixes(plan: Plan, root: Path) -> dict[str, dict[str, int]]:
    """Return for every data stage how many rows of each source are, or will be, in its mix, where that is known."""
    known, found = sizes(plan, root), {}
    by_key = {stage.key: known[stage.name] for stage in plan.stages if stage.name in known}
    for stage in plan.stages:
        if isinstance(stage.params, DataParams):
            counts = store.counts(store.folder(root, stage))
            rows = counts.get("out") or _rows_of(stage.params.mix, _parents(stage, by_key))
            found |= {stage.name: rows} if rows else {}
    return found


def _size(stage: Stage, counts: Mapping[str, Any], parents: Mapping[str, Size]) -> Size | None:
    if isinstance(stage.params, SourceParams):
        return _source(stage.params.use, counts)
    if isinstance(stage.params, DataParams):
        return _mixed(stage.params.mix, counts, parents)
    if isinstance(stage.params, PackParams) and "data" in parents:
        return _packed(stage.params.max_length, counts, parents["data"])
    if isinstance(stage.params, AnswersParams):
        return _sampled(stage, counts, parents)
    if isinstance(stage.params, PairsParams):
        return _paired(stage.params, counts, parents.get("samples"))
    if stage.kind.of_pairs:
        before = parents.get("data") or parents.get("pairs")
        return before and _counted(before, counts.get("pairs"))
    return parents.get("rows") or parents.get("pairs") if stage.kind.trains else None


def _counted(size: Size, rows: int | None) -> Size:
    return size if rows is None else Size(rows, size.prompt_tokens, size.answer_tokens, True, size.assumed_share)


def _source(use: RowsUse, counts: Mapping[str, Any]) -> Size | None:
    source = sources.load(use.source)
    known = source.sizes.get(use.split)
    limits = [limit for limit in (known, use.max_rows) if limit is not None]
    rows = counts.get("records", min(limits, default=None))
    if rows is None:
        return None
    tokens = source.mean_tokens.get(use.split)
    prompt, answer = tokens or (MEAN_TOKENS / 2, MEAN_TOKENS / 2)
    return Size(rows, prompt, answer, "records" in counts, 0.0 if tokens else 1.0)


def _mixed(mix: Mix, counts: Mapping[str, Any], parents: Mapping[str, Size]) -> Size | None:
    rows = _rows_of(mix, parents)
    if rows is None:
        return None
    total = sum(rows.values())
    parts = [(count, parents.get(f"source.{name}", _UNKNOWN)) for name, count in rows.items()]

    def mean(values: list[float]) -> float:
        return sum(rows * value for (rows, _), value in zip(parts, values, strict=True)) / max(total, 1)

    return _counted(
        Size(
            total,
            mean([source.prompt_tokens for _, source in parts]),
            mean([source.answer_tokens for _, source in parts]),
            False,
            mean([source.assumed_share for _, source in parts]),
        ),
        counts.get("records"),
    )


def _rows_of(mix: Mix, parents: Mapping[str, Size]) -> dict[str, int] | None:
    """Return how many rows a mix takes of each source, or None; of a source of unknown size as many as it may at most."""
    known = {item.name: parents[f"source.{item.name}"].rows if f"source.{item.name}" in parents else item.max_rows for item in mix}
    rows = {name: count for name, count in known.items() if count is not None}
    return mix_counts(rows, mix) if len(rows) == len(mix) else None


def of_part(stage: Stage, wanted: PromptSet, prompts: Size) -> int:
    """Return how many prompts of a set are in the part that is answered: as many as in each other, as far as is known."""
    parent = stage.inputs.get(f"prompts.{wanted.name}")
    if wanted.part is None or not (isinstance(parent, Stage) and isinstance(parent.params, PromptsParams)):
        return prompts.rows
    return -(-prompts.rows // parent.params.parts)


def _sampled(stage: Stage, counts: Mapping[str, Any], parents: Mapping[str, Size]) -> Size | None:
    """Prompts of the part that a round's policy answers, with the longest answer that it may give; None where answers are for measuring."""
    assert isinstance(stage.params, AnswersParams)
    wanted = stage.params.sets[0] if stage.params.sets else None
    prompts = parents.get(f"prompts.{wanted.name}") if wanted else None
    if wanted is None or prompts is None or wanted.part is None:
        return None
    told = counts.get("sets", {}).get(wanted.name)
    if told:
        return Size(told["prompts"], prompts.prompt_tokens, told["tokens"] / max(told["answers"], 1), True, prompts.assumed_share)
    return Size(of_part(stage, wanted, prompts), prompts.prompt_tokens, wanted.max_new_tokens, False, prompts.assumed_share)


def _paired(params: PairsParams, counts: Mapping[str, Any], samples: Size | None) -> Size | None:
    """Pairs of a round's own answers: of each prompt as many as the rules allow, at most."""
    if samples is None:
        return None
    most = Size(samples.rows * params.rules.per_prompt, samples.prompt_tokens, samples.answer_tokens, False, samples.assumed_share)
    if "records" not in counts:
        return most
    answer = (counts["mean_chosen_tokens"] + counts["mean_rejected_tokens"]) / 2
    return Size(counts["records"], samples.prompt_tokens, answer, True, samples.assumed_share)


def _packed(max_length: int, counts: Mapping[str, Any], data: Size) -> Size:
    """Packed rows; all tokens of a row count as its answer."""
    if "rows" in counts:
        return Size(counts["rows"], 0, counts["tokens"] / max(counts["rows"], 1))
    rows = -(-int(data.tokens) // int(max_length * FILL))
    return Size(rows, 0, max_length * FILL, False, data.assumed_share)
