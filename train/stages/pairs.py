"""Stage `pairs`: a round's own pairs, made of answers that judges ranked.

In: `prompts`, `samples` of a part of them, what judges said as `rank.NAME`, and `tokenizer`. Out: what a source leaves, so that mixes and
filters take it as any other: `records.parquet` of pairs, whose prompts begin with the system prompt that was said, and `dropped.jsonl`,
with exactly one line for each prompt without a pair: its id and the reason, never a text; and `pairs_info.parquet`, a pair's scores,
margin and tokens. A pair is left out where training would not read the tokens that were drawn (`retokenised_differently`), or could not
read it at all. Counts: prompts, pairs, prompts without one by reason, and which judge decided how many.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rounds.data_prep import progress
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import RECORDS, Pair, Prompt, write_records
from rounds.train.config.cluster import Machine
from rounds.train.config.sampling import SAMPLED
from rounds.train.engine import policy
from rounds.train.engine.params import PairsParams
from rounds.train.engine.records import Counts
from rounds.train.generation import asked
from rounds.train.generation.samples import Sample
from rounds.train.judging import combining, pairs, scores
from rounds.train.judging.pairs import Choice
from rounds.train.judging.scores import Score
from rounds.train.tokens import chat
from rounds.train.weights import models

_DROPPED = "dropped.jsonl"


def run(params: PairsParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Combine the judges' scores, choose pairs, and account for every prompt. Raises `UserError` when no pair is left."""
    tokenizer = models.load_tokenizer(policy.read(inputs["tokenizer"]))
    prompts = asked.wanted(inputs["prompts"], inputs["samples"])
    answers: defaultdict[str, list[Sample]] = defaultdict(list)
    for _, sample in asked.read(inputs["prompts"], inputs["samples"]):
        answers[sample.prompt_id].append(sample)
    said = {name: list(scores.read(inputs[f"rank.{name}"] / scores.RANKS)) for name in params.rank.by}
    combined, deciders = combining.combine(params.rank, said)
    ranked: defaultdict[str, list[Score]] = defaultdict(list)
    for score in combined:
        ranked[score.prompt_id].append(score)
    outcomes: dict[str, list[Choice] | str] = {}
    for number, prompt in enumerate(prompts):
        if prompt.id in answers:
            outcomes[prompt.id] = pairs.choose(answers[prompt.id], ranked[prompt.id], params.rules, params.seed)
        progress.write(out, number + 1, len(prompts), "prompts")
    asked_for = {each.id: each for each in prompts}
    left_out = _fit_to_train(tokenizer, asked_for, outcomes)
    outcomes |= _not_answered(tokenizer, [each for each in prompts if each.id not in answers])
    counts = pairs.counts(outcomes[each.id] for each in prompts)
    chosen = [(asked_for[name], choice) for name, found in sorted(outcomes.items()) if not isinstance(found, str) for choice in found]
    if not chosen:
        raise UserError(f"none of {len(prompts):,} prompts gives a pair: {counts['dropped']}. {_way_on(counts)}")
    write_records(out / RECORDS, (_record(prompt, choice) for prompt, choice in chosen), "pair")
    pairs.write_info(out / pairs.INFO, [pairs.info(choice) for _, choice in chosen])
    with (out / _DROPPED).open("w", encoding="utf-8") as log:
        for name, why in sorted(outcomes.items()):
            if isinstance(why, str):
                log.write(json.dumps({"id": name, "reason": why}) + "\n")
    return {**counts, "records": len(chosen), "pairs_left_out": left_out, "decided_by": deciders, **_means([each for _, each in chosen])}


def _record(prompt: Prompt, choice: Choice) -> Pair:
    return pairs.record(prompt.prompt, SAMPLED, choice)


def _fit_to_train(tokenizer: Any, prompts: Mapping[str, Prompt], outcomes: dict[str, list[Choice] | str]) -> dict[str, int]:
    """Take pairs out that training would read as other tokens than were drawn, or not at all; a prompt that has none left says why.
    Returns how many by reason."""
    made = [(name, choice) for name, found in outcomes.items() if not isinstance(found, str) for choice in found]
    encoded = chat.encode_pairs(tokenizer, [_record(prompts[name], choice) for name, choice in made]) if made else []
    left: defaultdict[str, list[Choice]] = defaultdict(list)
    why: defaultdict[str, list[str]] = defaultdict(list)
    for (name, choice), tokens in zip(made, encoded, strict=True):
        reason = tokens if isinstance(tokens, str) else "" if _as_drawn(choice, tokens) else "retokenised_differently"
        if reason:
            why[name].append(reason)
        else:
            left[name].append(choice)
    outcomes |= {name: left[name] or why[name][0] for name, _ in made}
    reasons = [reason for each in why.values() for reason in each]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}


def _as_drawn(choice: Choice, tokens: chat.EncodedPair) -> bool:
    """Tell whether training reads the tokens that were drawn, before the control token that ends an answer which was not cut off."""
    sides = ((choice.chosen.sample, tokens.chosen_ids), (choice.rejected.sample, tokens.rejected_ids))
    return all((ids[:-1] if sample.ended else ids) == sample.token_ids for sample, ids in sides)


def _not_answered(tokenizer: Any, prompts: Sequence[Prompt]) -> dict[str, str]:
    """Say of each prompt that no sample was drawn of why not: its tokens cannot be had, or leave no room for an answer."""
    encoded = chat.encode_prompts(tokenizer, [each.prompt for each in prompts]) if prompts else []
    return {each.id: tokens if isinstance(tokens, str) else "too_long" for each, tokens in zip(prompts, encoded, strict=True)}


def _means(chosen: Sequence[Choice]) -> dict[str, float]:
    """Return what tells of length and margin: answers grow longer from round to round where length is what wins."""
    return {
        "mean_margin": round(fmean(each.chosen.score - each.rejected.score for each in chosen), 4),
        "mean_chosen_tokens": round(fmean(each.chosen.sample.tokens for each in chosen), 1),
        "mean_rejected_tokens": round(fmean(each.rejected.sample.tokens for each in chosen), 1),
        "longer_chosen_share": round(fmean(each.chosen.sample.tokens > each.rejected.sample.tokens for each in chosen), 4),
    }


def _way_on(counts: Counts) -> str:
    dropped = counts["dropped"]
    most = max(dropped, key=lambda name: dropped[name])
    ways = {
        "missing_score": "another judge in `rank.by` may know these prompts",
        "all_tied": "a further judge in `rank.by` may tell the answers apart, or more answers (`sample.num_answers`)",
        "one_distinct_answer": "raise `sample.temperature` or `sample.num_answers`",
        "below_margin": "lower `pairs.min_margin`",
        "chosen_truncated": "raise `sample.max_new_tokens`",
        "rejected_truncated": "raise `sample.max_new_tokens`, or set `pairs.truncated: may_lose`",
        "length_ratio": "raise `pairs.max_length_ratio`",
    }
    return f"Most are dropped as {most}: {ways[most]}" if most in ways else f"Most are dropped as {most}"
