"""`rounds plan`: every stage with its key, whether it is done, why not, and how large it is."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from rounds.train.config.judging import Llm, Pairwise
from rounds.train.engine import batches, damage, runs, store
from rounds.train.engine.digests import Memory
from rounds.train.engine.graph import Stage
from rounds.train.engine.params import AnswersParams, DpoParams, JudgeParams, PromptsParams, RankParams, RewardParams, SftParams
from rounds.train.forecast import evaluation_tokens, judging, row_counts
from rounds.train.plan.pipeline import Plan


def plan_table(plan: Plan, root: Path, part: Sequence[Stage] = ()) -> Table:
    """List stages, all or a part of the plan's, with key, state and size, done or expected. Reads the store; computes nothing."""
    stages = part or plan.stages
    table = Table(title=f"{plan.recipe.name}: {len(stages)} stages", title_justify="left", box=None, header_style="bold")
    for heading in ("stage", "key", "state", "size"):
        table.add_column(heading, overflow="fold")
    memory = Memory(root)
    before, sizes = runs.last_run(root, plan.recipe.name), row_counts.sizes(plan, root)
    for stage in stages:
        record = store.done(store.folder(root, stage))
        wrong = damage.quick(store.folder(root, stage), memory, stage.name)
        if wrong:
            state = Text(f"damaged: {', '.join(each.file for each in wrong)}; `rounds verify` says more", "red")
        elif record:
            state = Text("skipped" if record.skipped else "done", "green")
        else:
            state = Text("to do" + _why(stage, before.get(stage.name)), "yellow")
        table.add_row(stage.name, stage.key, state, _size(stage, plan, root, sizes))
    return table


def _why(stage: Stage, old: dict | None) -> str:
    """Say what differs from the stage of that name in the recipe's last run."""
    if old is None or old["folder"] == stage.folder_name:
        return ""
    changes = []
    if old["version"] != stage.version:
        changes.append(f"code version {old['version']} -> {stage.version}")
    changes += _differences("", old["params"], stage.params.stored())
    new_inputs = {name: source.key for name, source in stage.inputs.items()}
    changed = [name for name in new_inputs if old["inputs"].get(name) != new_inputs[name]]
    removed = [name for name in old["inputs"] if name not in new_inputs]
    if changed:
        changes.append("input " + ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else ""))
    if removed:
        changes.append("without " + ", ".join(removed[:3]))
    return f" (changed: {'; '.join(changes[:3])})" if changes else ""


def _differences(path: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*new, *(key for key in old if key not in new)]
        found = [_differences(f"{path}.{key}" if path else key, old.get(key), new.get(key)) for key in keys]
        return [line for lines in found for line in lines]
    if old == new:
        return []
    texts = [text if len(text) <= 40 else f"{text[:37]}..." for text in (json.dumps(old), json.dumps(new))]
    return [f"{path} {texts[0]} -> {texts[1]}"]


def _size(stage: Stage, plan: Plan, root: Path, sizes: Mapping[str, row_counts.Size]) -> str:
    """Say how large a stage is, or will be as far as finished stages and published sizes tell."""
    counts, size = store.counts(store.folder(root, stage)), sizes.get(stage.name)
    if stage.kind.writes:
        sets = evaluation_tokens.written(stage, sizes)
        most = sum(each.answers * each.answer_tokens for each in sets)
        return f"{sum(each.answers for each in sets):,} answers, up to {most:,} tokens" if most else ""
    if isinstance(stage.params, JudgeParams):
        return _comparisons(stage, stage.params, sizes)
    if isinstance(stage.params, RankParams):
        return _judged(stage.params, counts, judging.of(stage, sizes))
    if stage.kind.pairs_up and "prompts" in counts:
        return f"{counts['pairs']:,} pairs of {counts['prompts']:,} prompts"
    if "parameters" in counts:
        return f"{counts['parameters']:,} parameters"
    if size is None:
        return ""
    if stage.kind.trains:
        return _steps(stage, plan, size)
    about = "" if size.counted else "about " if stage.kind.packs else "up to "
    if stage.kind.packs:
        return f"{about}{size.rows:,} packed rows, {size.tokens:,.0f} tokens"
    if isinstance(stage.params, PromptsParams):
        return f"{about}{size.rows:,} prompts, in {stage.params.parts} part{'s' * (stage.params.parts > 1)}"
    return f"{about}{size.rows:,} {'pairs' if stage.kind.of_pairs or stage.kind.pairs_up else 'rows'}"


def _judged(params: RankParams, counts: Mapping[str, Any], asked: judging.Asked | None) -> str:
    """Say what a judge was asked, or may be at most."""
    if "answers" in counts:
        return f"{counts['answers']:,} answers by {params.judge.kind}, {counts['missing']:,} missing"
    if asked is None:
        return params.judge.kind
    parts = [f"up to {asked.answers:,} answers of {asked.prompts:,} prompts by {params.judge.kind}"]
    if asked.calls:
        parts.append(f"up to {asked.calls:,} calls, {asked.tokens:,.0f} tokens")
    elif asked.orders:
        parts.append(f"up to {asked.orders:,} comparisons, both orders counted")
    if asked.cascade:
        parts.append("less those that were decided before")
    return ", ".join(parts)


def _comparisons(stage: Stage, params: JudgeParams, sizes: Mapping[str, row_counts.Size]) -> str:
    """Say how many comparisons a judge makes at most; of an endpoint, how many requests that is when each is answered at once."""
    answers = stage.inputs["answers"]
    assert isinstance(answers, Stage) and isinstance(answers.params, AnswersParams)
    place = [each.name for each in answers.params.sets].index(params.answers)
    most = evaluation_tokens.written(answers, sizes)[place].answers
    if not most:
        return ""
    judge, calls = params.judge, ""
    both = " in both orders" if isinstance(judge, Pairwise | Llm) else ""
    if isinstance(judge, Llm) and judge.endpoint is not None:
        calls = f", up to {min(2 * most, judge.max_calls):,} calls where each is answered at once"
    return f"up to {most:,} comparisons{both}{calls}"


def _steps(stage: Stage, plan: Plan, size: row_counts.Size) -> str:
    assert isinstance(stage.params, SftParams | DpoParams | RewardParams)
    training = stage.params.training
    steps = batches.steps(size.rows, training)
    text = f"{steps:,} steps of {training.global_batch_size}"
    if not size.counted:
        unsure = f"; {size.assumed_share:.0%} of its rows taken as {row_counts.MEAN_TOKENS} tokens"
        text += f" if no row is dropped{unsure if size.assumed_share else ''}"
    published = (plan.recipe.published_steps or {}).get(stage.name.removeprefix("dpo."))
    return f"{text} (published: {published:,})" if published else text
