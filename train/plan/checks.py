"""What is refused before anything runs: one function a refusal, each a `UserError` with field, what was found, and the way on."""

from collections.abc import Container
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rounds.data_prep import filters, sources
from rounds.data_prep.errors import UserError, nearest
from rounds.data_prep.schema import Mix, SourceUse
from rounds.train.config import yaml_file
from rounds.train.config.evaluation import MIN_ITEMS, AnswerSet, Evaluate, Gate
from rounds.train.config.prompts import Prompts
from rounds.train.config.recipe import Recipe
from rounds.train.config.reward import Trained
from rounds.train.config.training import Round, Sft, Training
from rounds.train.config.written import LOWER_IS_BETTER, METRICS
from rounds.train.engine import ifeval
from rounds.train.plan import eval_tasks
from rounds.train.plan.model_config import Limits


def named(recipe: Recipe, name: str, where: str) -> None:
    """Refuse a name that is not under `sources`."""
    if name not in recipe.sources:
        raise UserError(f"{where}: no source is named {name!r} in the recipe. {nearest(name, recipe.sources)}")


def registered(name: str, use: SourceUse) -> sources.Source:
    """Return the source that a use names; refuse one that is not registered, that lacks its place, or that is not pinned."""
    try:
        source = sources.load(use.source)
        source.check(use)
    except UserError as error:
        raise UserError(f"sources.{name}: {error}") from None
    if source.kind_by_format and not use.path:
        raise UserError(f"sources.{name}.path: required for {use.source}: the file or folder with your rows")
    home = source.home(use)
    if home and not (use.path or home.revision):
        raise UserError(
            f"sources.{name}.revision: give the commit of {home.repository} on the hub to use (none is pinned "
            f"in the source's file), or `path:` of a local copy"
        )
    return source


def for_training(use: SourceUse, source: sources.Source, where: str) -> None:
    """Refuse to train on a split that is for evaluation."""
    if use.split in source.evaluation_only:
        raise UserError(f"{where}: split {use.split!r} of {use.source} is for evaluation only; do not train on it")


def licence(recipe: Recipe, name: str, use: SourceUse, source: sources.Source) -> None:
    """Refuse rows whose licence nobody has stated, unless the recipe takes that upon itself."""
    if not (use.licence or source.licence or name in recipe.allow_unlicensed):
        how = "state `licence:`, or" if source.kind_by_format else "its publisher states none; to use it all the same,"
        raise UserError(
            f"sources.{name}.licence: no licence is known for these rows: {how} list the source under `allow_unlicensed: [{name}]`"
        )


def filter_settings(use: Any) -> None:
    """Refuse a filter that is not there, or settings that it does not have."""
    try:
        filters.settings(use)
    except ValidationError as error:
        raise UserError(yaml_file.explain(error, filters.section(use), f"filter {use.name}")) from None


def mix(recipe: Recipe, items: Mix, where: str, kinds: tuple[str, ...], made: Container[str] = ()) -> None:
    """Refuse a source of the wrong kind, or one that stands twice in a mix; what is `made` by the run is of the right one."""
    names = [item.name for item in items]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: source {name!r} stands twice; give it once, with the share you want")
        if name not in made:
            record_kind(recipe, name, where, kinds)


def record_kind(recipe: Recipe, name: str, where: str, kinds: tuple[str, ...]) -> None:
    """Refuse a source whose records are of none of these kinds."""
    use = recipe.sources[name]
    kind = sources.load(use.source).kind(use)
    if kind not in kinds:
        raise UserError(f"{where}: source {name!r} holds {kind}s, expected {' or '.join(f'{each}s' for each in kinds)}")


def not_trained_on(recipe: Recipe, name: str, where: str) -> None:
    """Refuse to evaluate on rows that the recipe trains on, or asks to train on the answers."""
    judges = [judge for judge in recipe.judges.values() if isinstance(judge, Trained)]
    sections: list[Sft | Round | Prompts | Trained] = [
        *([recipe.sft] if recipe.sft else []),
        *recipe.rounds,
        *recipe.prompts.values(),
        *judges,
    ]
    for item in (item for section in sections for item in section.data):
        if _same_rows(recipe.sources[name], recipe.sources.get(item.name)):
            raise UserError(
                f"{where}: source {name!r} is also trained on (as {item.name!r}); evaluate on another split, and give both uses of "
                "a file the same `heldout_fraction`"
            )


def _same_rows(evaluated: SourceUse, trained: SourceUse | None) -> bool:
    """Tell whether two uses share rows of one set, however many they keep and in whatever format they read a file."""
    named = ("source", "path", "revision", "from_split", "config")
    if trained is None or any(getattr(evaluated, name) != getattr(trained, name) for name in named):
        return False
    if evaluated.split == "heldout" and trained.split == "train":
        # Held out is what hashes below the fraction: a use of the file with a smaller one trains on the rows between.
        return trained.heldout_fraction < evaluated.heldout_fraction
    return evaluated.split == trained.split


def fits_model(limits: Limits, training: Training, where: str) -> None:
    """Refuse rows that are longer than the model was made to read, since it has no positions for their end, and an adapter whose rank
    is more than the model's width, since no update of a layer has a higher rank than that."""
    if limits.positions and training.max_length > limits.positions:
        raise UserError(
            f"{where}.max_length: {training.max_length} tokens, and the model's config says max_position_embeddings "
            f"{limits.positions}: lower it, or scale the rotary embedding in config.json (rope_parameters)"
        )
    if training.lora and limits.width and training.lora.r > limits.width:
        raise UserError(
            f"{where}.lora.r: {training.lora.r}, and the model's config says hidden_size {limits.width}: no update has a higher rank than "
            "that. Lower it (8 to 256 are usual), or take `lora` out to train all weights"
        )


def sft_starts_anew(sft: Sft) -> None:
    """Refuse an SFT that is to go on with an adapter."""
    if sft.lora and sft.lora.start == "continue":
        raise UserError("sft.lora.start: nothing comes before sft that could be continued; set `merge`")


def reference(item: Round, policies: dict[str, Any]) -> None:
    """Refuse a reference that is no policy before the round."""
    if item.reference not in policies:
        raise UserError(
            f"rounds.{item.name}.reference: {item.reference!r} is no policy before this round. {nearest(item.reference, policies)}"
        )


def continues(recipe: Recipe, item: Round) -> None:
    """Refuse a round that is to go on with an adapter where the stage before it trains none of the same shape."""
    if item.lora is None or item.lora.start == "merge":
        return
    place = recipe.rounds.index(item)
    before = recipe.rounds[place - 1] if place else recipe.sft
    if before is None or not item.lora.same_adapter(before.lora):
        lacking = "no stage comes before it" if before is None else f"the stage before it has lora {before.lora or 'not set'}"
        raise UserError(
            f"rounds.{item.name}.lora.start: `continue` needs an adapter of the same r, lora_alpha, target_modules and "
            f"quantisation in the stage before, but {lacking}; make them equal, or set `merge`"
        )


def gate(recipe: Recipe, rules: Gate, item: Round, recipe_folder: Path) -> None:
    """Refuse rules about something that nobody measures, or that is known to be measured on too little to decide by."""
    evaluate = recipe.evaluate or Evaluate()
    for rule in rules.rules:
        if rule.metric.partition("/")[0] not in {each.name for each in evaluate.judged}:  # those are checked in `judged.py`
            _is_measured(rule.metric, recipe, recipe_folder, f"gate of round {item.name!r}: metric")
        most = _most_questions(recipe, evaluate, rule.metric)
        if rules.too_few == "stop" and most is not None and most < MIN_ITEMS:
            raise UserError(
                f"gate of round {item.name!r}: {rule.metric} is measured on {most} rows at most, and fewer than {MIN_ITEMS} questions say "
                "too little to decide by: raise its `limit` or `max_rows`, or say under `gate` what becomes of the rule: "
                "`too_few: accept`, or `too_few: reject`"
            )


def averages(recipe: Recipe, recipe_folder: Path) -> None:
    """Refuse an average of something that nobody measures, or of which more is better in one part and less in another; and a column of
    published scores that nothing of ours stands for."""
    evaluate = recipe.evaluate or Evaluate()
    for column in evaluate.published.columns if evaluate.published else ():
        _is_measured(column, recipe, recipe_folder, "evaluate.published.columns:")
    for name, average in evaluate.averages.items():
        for part in average.mean_of:
            _is_measured(part, recipe, recipe_folder, f"evaluate.averages.{name}:")
        lower = [part for part in _leaves(evaluate, name) if _lower_is_better(evaluate, part)]
        if lower and len(lower) < len(_leaves(evaluate, name)):
            raise UserError(
                f"evaluate.averages.{name}: of {lower[0]} less is better, of others more: their mean says nothing; average them apart"
            )


def _leaves(evaluate: Evaluate, metric: str) -> list[str]:
    """Return the metrics that an average is made of in the end; of a metric itself."""
    if metric not in evaluate.averages:
        return [metric]
    return [leaf for part in evaluate.averages[metric].mean_of for leaf in _leaves(evaluate, part)]


def _lower_is_better(evaluate: Evaluate, metric: str) -> bool:
    subject, _, name = metric.partition("/")
    return metric == "conversations/loss" or (name in LOWER_IS_BETTER and any(each.name == subject for each in evaluate.answers))


def _is_measured(metric: str, recipe: Recipe, recipe_folder: Path, where: str) -> None:
    evaluate = recipe.evaluate or Evaluate()
    measured = _measured(recipe, recipe_folder)
    subject, _, rest = metric.partition("/")
    known = measured.get(subject)
    if subject in evaluate.absent:
        if where.startswith("gate"):
            raise UserError(f"{where} {metric!r} cannot be measured: {evaluate.absent[subject]}")
        return
    # A task of lm-eval's own is not opened here, so its metrics are not known; a third part is a group of rows.
    if metric in evaluate.averages or (subject in measured and rest and (known is None or rest.partition("/")[0] in known)):
        return
    valid = [*evaluate.averages, *(f"{name}/{each}" for name, metrics in measured.items() for each in metrics or ["..."])]
    raise UserError(f"{where} {metric!r} is not measured; expected task/metric, or an average. {nearest(metric, valid)}")


def _most_questions(recipe: Recipe, evaluate: Evaluate, metric: str) -> int | None:
    """Return how many rows a metric is measured on at most, where recipe or source says it; of an average, all its parts together."""
    if metric in evaluate.averages:
        parts = {leaf.partition("/")[0]: _most_questions(recipe, evaluate, leaf) for leaf in _leaves(evaluate, metric)}
        bounds = [bound for bound in parts.values() if bound is not None]
        return sum(bounds) if len(bounds) == len(parts) else None
    subject = metric.partition("/")[0]
    task = next((task for task in evaluate.tasks if task.label == subject), None)
    compared = {each.name: each.answers for each in evaluate.judged}
    answers = next((each for each in evaluate.answers if each.name == compared.get(subject, subject)), None)
    asked = [each.source for each in (task, answers) if each]
    names = {"preferences": evaluate.preferences, "conversations": [evaluate.conversations]}.get(subject, asked)
    limits = [_most_rows(recipe.sources[name]) if name in recipe.sources else None for name in names if name]
    rows = sum(limit for limit in limits if limit) if limits and all(limits) else None
    bounds = (rows, task.limit if task else None, answers.max_rows if answers else None)
    return min((bound for bound in bounds if bound is not None), default=None)


def _most_rows(use: SourceUse) -> int | None:
    """Return how many rows a source has at most: what the recipe takes of it or, of the published set itself, how many it has."""
    published = None if use.path else sources.load(use.source).sizes.get(use.split)
    return min((rows for rows in (use.max_rows, published) if rows is not None), default=None)


def _measured(recipe: Recipe, recipe_folder: Path) -> dict[str, list[str] | None]:
    """Return subject -> the metrics of it, None where they are not known."""
    evaluate = recipe.evaluate or Evaluate()
    measured: dict[str, list[str] | None] = {task.label: eval_tasks.metrics(task.task, recipe_folder) for task in evaluate.tasks}
    if evaluate.preferences:
        measured["preferences"] = ["accuracy", "margin", "chosen_logp", "rejected_logp"]
    if evaluate.conversations:
        measured["conversations"] = ["loss"]
    for each in evaluate.answers:
        use = recipe.sources.get(each.source)
        if use is not None:
            measured[each.name] = list(METRICS[sources.load(use.source).kind(use)])
    return measured


def answers(recipe: Recipe, each: AnswerSet, where: str) -> None:
    """Refuse answers that this environment cannot measure."""
    use = recipe.sources.get(each.source)
    lacking = ifeval.missing() if use is not None and use.source == "ifeval" else ""
    if lacking:
        raise UserError(f"{where}: {lacking}")
