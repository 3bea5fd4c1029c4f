"""The report's part on judges: which round's answers a judge preferred to whose, how sure that is, and how far the judge can be believed.

In: the recipe and the finished `judge` stages. Out: for each comparison of the recipe its rounds in numbers and words, and all its policies
on one scale.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rounds.train.config.evaluation import MIN_ITEMS
from rounds.train.config.metrics import WIN_RATES
from rounds.train.engine import store
from rounds.train.engine.records import Score
from rounds.train.judging import strengths, verdicts, win_rates
from rounds.train.reports.steps import Finished

Row = dict[str, Any]

_CLEAR = 0.1
"""So far from a half, a judge's share of the first place, or of the longer answers, is told in words."""


def comparisons(recipe: Mapping[str, Any], stages: Mapping[str, Finished]) -> list[dict[str, Any]]:
    """Return each comparison that the recipe asks for and that was made, with its rounds in their order."""
    found = []
    for each in (recipe.get("evaluate") or {}).get("judged") or ():
        rounds = [name for item in recipe["rounds"] if (name := f"judge.{item['name']}.{each['name']}") in stages]
        made = [stages[name] for name in rounds if not stages[name].skipped]
        if made:
            rows = [_row(stage) for stage in made]
            judge = recipe["judges"][each["by"]]
            scale, apart = strengths.table(rows[0]["against"], {(row["policy"], row["against"]): row["won"] for row in rows})
            found.append(
                {
                    **each,
                    "judge": _told(judge),
                    "in_both_orders": any(row["flip_share"] is not None for row in rows),
                    "scored": any("mean_score" in row for row in rows),
                    "rows": rows,
                    "warnings": [*_ranks_too(recipe, each), *_beliefs(rows)],
                    "scale": scale,
                    "apart": apart,
                }
            )
    return found


def disagreements(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say of which rounds one judge sees a gain that another does not, and whether they got longer."""
    by_round: dict[str, list[tuple[Mapping[str, Any], Row]]] = {}
    for each in found:
        for row in each["rows"]:
            by_round.setdefault(row["policy"], []).append((each, row))
    said = []
    for name, those in by_round.items():
        up = [each["by"] for each, row in those if _is_enough(row) and row["winrate"]["low"] > 0.5]
        others = [each["by"] for each, row in those if _is_enough(row) and row["winrate"]["low"] <= 0.5 and each["by"] not in up]
        longer = any(row["tokens"] > row["tokens_against"] for _, row in those)
        if up and others:
            length = ", and its answers got longer" if longer else ""
            said.append(
                f"{name}: better by {', '.join(dict.fromkeys(up))}, not by {', '.join(dict.fromkeys(others))}{length}. What one rewards "
                "need not be what another asks for: read answers before believing either"
            )
    return said


def scores(stages: Mapping[str, Finished]) -> list[tuple[str, str, Score]]:
    """Return every win rate with its policy and its metric, for tables."""
    made = [stage for stage in stages.values() if stage.kind.compares_answers and not stage.skipped]
    return [(stage.counts["policy"], name, score) for stage in made for name, score in store.scores(stage.folder).items()]


def _row(stage: Finished) -> Row:
    given = list(verdicts.read(stage.folder / verdicts.VERDICTS))
    row: Row = {**stage.counts, "won": {each.prompt_id: each.value for each in win_rates.by_prompt(given)}}
    return {**row, "says": _says(row)}


def _is_enough(row: Row) -> bool:
    return row["winrate"]["questions"] >= MIN_ITEMS


def _says(row: Row) -> str:
    """Put a comparison in words: what the intervals allow to be said, and nothing more."""
    raw, level, longer = row["winrate"], row["winrate_lc"], row["tokens"] - row["tokens_against"]
    if not _is_enough(row):
        return f"too few questions to say ({raw['questions']})"
    if raw["high"] < 0.5:
        return "preferred less"
    if raw["low"] <= 0.5:
        return "no difference beyond noise"
    if level["low"] > 0.5:
        return "preferred, also at equal length"
    return f"preferred, but not at equal length beyond noise: its answers have {longer:+.1f} tokens in the mean"


def _told(judge: Mapping[str, Any]) -> str:
    """Name a judge by its kind and by what it is."""
    what = judge.get("id") or judge.get("model") or judge.get("policy") or judge.get("match") or judge.get("rule") or "a model folder"
    licence = f", licence {judge['licence']}" if judge.get("licence") else ""
    return f"{judge['kind'].replace('_', ' ')}: {what}{licence}"


def _ranks_too(recipe: Mapping[str, Any], each: Mapping[str, Any]) -> list[str]:
    """Say which rounds' pairs were made by the judge that also gates them."""
    judges = recipe["judges"]
    rounds = [
        item["name"]
        for item in recipe["rounds"]
        if any(name == each["by"] or _same(judges[name], judges[each["by"]]) for name in (item.get("rank") or {}).get("by", ()))
        and _gates(recipe, item, each["name"])
    ]
    if not rounds:
        return []
    return [
        f"{each['by']} made the pairs of {', '.join(rounds)} and gates it too, as the recipe allows (also_ranks): a policy that learnt to "
        "please this judge wins by it, so this rate is no independent evidence"
    ]


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether two names mean one judge; of a folder the recipe does not tell."""
    return one == other and (one["kind"] not in ("reward_model", "pairwise") or "id" in one)


def _gates(recipe: Mapping[str, Any], item: Mapping[str, Any], name: str) -> bool:
    rules = (item.get("gate") or recipe.get("gate") or {}).get("rules") or ()
    return any(rule["metric"] in {f"{name}/{metric}" for metric in WIN_RATES} for rule in rules)


def _beliefs(rows: Sequence[Row]) -> list[str]:
    """Say how far a judge goes by the place and by the length, where that is plain."""
    said = []
    for row in rows:
        place, longer, missing = row["first_place_share"], row["agrees_with_longer_share"], row["prompts_missing"]
        if place is not None and abs(place - 0.5) > _CLEAR:
            which = "first" if place > 0.5 else "second"
            turned = "" if row["flip_share"] is None else f", and its verdict turned with the order in {row['flip_share']:.0%}"
            said.append(f"{row['policy']}: it prefers the {which} place ({max(place, 1 - place):.0%} of its decisions){turned}")
        decided = round((row["comparisons"] - row["missing"]) * (1 - (row["tie_share"] or 0.0)))
        if longer is not None and abs(longer - 0.5) > _CLEAR and decided >= MIN_ITEMS:
            which = "longer" if longer > 0.5 else "shorter"
            said.append(f"{row['policy']}: it decides for the {which} answer in {max(longer, 1 - longer):.0%}")
        if missing:
            said.append(f"{row['policy']}: {missing:,} of {row['prompts']:,} prompts have no verdict and are not counted")
    return said
