"""The shape of a run: a recipe in, the stages of the run out. The only place that knows how stages follow each other.

    source.*  ->  data.sft   ->  pack ->  sft  --+
    source.*  ->  data.ROUND ->  tokenize.ROUND  |
                                     |           v
    for each round:     reference.ROUND  ->  dpo.ROUND  ->  evaluate.ROUND  ->  gate.ROUND  -> next round
                                           (before it what is answered: answers.ROUND; beside it judge.ROUND.NAME,
                                            which compares these answers with those of another policy)
    source.*  ->  prompts.NAME, to be answered and not trained on; what a round makes of its policy's answers is in `on_policy.py`:
                  policy, prompts.NAME  ->  sample.ROUND  ->  rank.ROUND.JUDGE  ->  pairs.ROUND  ->  data.ROUND
    pairs that are held out, and what the run trains of a judge (`reward.py`)  ->  card.JUDGE
    at the end:         manifest (of all rows), export, report

What is made of rows is in `rows.py`, who compares answers in `judged.py`, what is refused in `checks.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from rounds.data_prep import sources
from rounds.data_prep.errors import UserError, nearest
from rounds.data_prep.schema import Section
from rounds.train.config.evaluation import Evaluate
from rounds.train.config.recipe import Base, Hub, Local, Recipe, Start, Tiny
from rounds.train.config.training import DpoLoss, Lora, Round, Training
from rounds.train.engine import kinds, params
from rounds.train.engine.graph import Asset, Stage, parents_first
from rounds.train.engine.policy import MODEL_FILES
from rounds.train.plan import cards, checks, eval_tasks, held_out, judged, model_config, on_policy, rows
from rounds.train.plan.rows import Planning

S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Plan:
    """All stages of a run, parents first, and what the run is called."""

    recipe: Recipe
    stages: tuple[Stage, ...]
    held_out: held_out.HeldOut
    """What training rows are compared with, and what they cannot be compared with."""
    scores: Stage
    """Holds the scores of the policy that the run ends with: an evaluation, or the last round's gate."""

    def stage(self, name: str) -> Stage:
        """Return the stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    def until(self, names: Sequence[str]) -> "Plan":
        """Return the part of it that makes the stages of these names. Raises `UserError` for a name that is none's, with the nearest."""
        known = [stage.name for stage in self.stages]
        for name in names:
            if name not in known:
                raise UserError(f"the recipe has no stage {name!r}: {nearest(name, known)}")
        wanted = {stage.key for stage in parents_first([self.stage(name) for name in names])}
        return replace(self, stages=tuple(stage for stage in self.stages if stage.key in wanted))


def build_plan(recipe: Recipe, root: Path, recipe_folder: Path, *, read_files: bool = True) -> Plan:
    """List everything that a recipe asks for. Raises `UserError` for a name that refers to nothing.

    `root` is the store, where digests of local files are remembered; `recipe_folder` is where shared files such as
    `eval_tasks/` are looked for first. Without `read_files` the user's own files need not be there: the stages are the
    same, but their keys mean nothing. That is for asking what a run needs on a machine that does not have it.
    """
    planning = Planning(recipe, root, recipe_folder, read_files, held_out.held_out(recipe))
    for name in recipe.allow_unlicensed:
        checks.named(recipe, name, "allow_unlicensed")
    checks.averages(recipe, recipe_folder)
    on_policy.check(recipe)
    judged.unused(recipe)
    asked = {name: rows.prompts(planning, name, each) for name, each in recipe.prompts.items()}
    policy = base = _base(planning)
    evaluations = {"base": _evaluate(planning, "base", base)}
    references = {"base": base}
    if recipe.sft:
        policy = references["sft"] = _sft(planning, base)
        evaluations["sft"] = _evaluate(planning, "sft", policy)
    scores = evaluations["sft" if recipe.sft else "base"]
    rounds: list[Stage] = []
    compared: list[Stage] = []
    for place, item in enumerate(recipe.rounds):
        around = on_policy.Around(policy, references, base, asked)
        own = {on_policy.SAMPLED: on_policy.pairs(planning, item, place, around)} if item.sample else {}
        new = _dpo(planning, item, policy, {**references, "previous": policy}, base, own)
        evaluations[item.name] = _evaluate(planning, item.name, new)
        pitted = judged.stages(planning, item, references, policy, evaluations)
        compared += pitted.values()
        policy = _gate(planning, item, policy, new, scores, evaluations[item.name], pitted)
        scores = policy if policy is not new else evaluations[item.name]
        references[item.name] = policy
        rounds += [new] if policy is new else [new, policy]
    known = cards.of_judges(planning, references)
    manifest = _manifest(planning, [policy, *(evaluations.values() if recipe.evaluate else ()), *asked.values(), *known])
    export = _export(planning, policy, rounds, evaluations, manifest)
    stages = parents_first([*(evaluations.values() if recipe.evaluate else ()), *compared, *known, export])
    report = Stage("report", kinds.REPORT, _report_params(recipe), {stage.name: stage for stage in stages})
    return Plan(recipe, (*stages, report), planning.held_out, scores)


def start(recipe: Recipe, root: Path, recipe_folder: Path) -> Stage:
    """Plan a recipe's starting model alone."""
    return _base(Planning(recipe, root, recipe_folder, True, held_out.held_out(recipe)))


def measure(recipe: Recipe, root: Path, recipe_folder: Path, policies: Mapping[str, Stage]) -> dict[str, Stage]:
    """Plan the measuring of policies, whoever made them, on what a recipe holds out."""
    planning = Planning(recipe, root, recipe_folder, True, held_out.held_out(recipe))
    checks.averages(recipe, recipe_folder)
    return {name: _evaluate(planning, policy.name.partition(".")[2] or policy.name, policy) for name, policy in policies.items()}


def _base(planning: Planning) -> Stage:
    """Make the starting model: trained on nothing (tiny), found in a folder, or fetched from the hub."""
    base = planning.recipe.base
    template = planning.text(base.chat_template, "base.chat_template") if base.chat_template else None
    seed = planning.recipe.seed if isinstance(base, Tiny) else None
    inputs: dict[str, Stage | Asset] = {}
    if isinstance(base, Tiny):
        inputs["corpus"] = rows.corpus(planning, base)
    elif isinstance(base, Local):
        inputs["model"] = planning.asset(base.path, "base.path", MODEL_FILES)
    else:
        assert isinstance(base, Hub)
    return Stage("base", kinds.BASE, params.BaseParams(base=_start(base), chat_template=template, seed=seed), inputs)


def _sft(planning: Planning, base: Stage) -> Stage:
    """Tokenise and pack on a CPU, then train."""
    sft = planning.recipe.sft
    assert sft
    checks.fits_model(model_config.limits(planning.recipe.base), sft, "sft")
    checks.sft_starts_anew(sft)
    packing = params.PackParams(max_length=sft.max_length, each_answer=sft.each_answer)
    packed = Stage("pack", kinds.PACK, packing, {"tokenizer": base, "data": rows.sft_data(planning)})
    asked = params.SftParams(training=_part(sft, Training), seed=planning.recipe.seed)
    return Stage("sft", kinds.SFT, asked, {"policy": base, "rows": packed})


def _dpo(planning: Planning, item: Round, policy: Stage, references: Mapping[str, Stage], base: Stage, own: Mapping[str, Stage]) -> Stage:
    """Tokenise the round's pairs, its `own` among them, score them with the reference policy, and train from `policy`."""
    where = f"rounds.{item.name}"
    checks.reference(item, dict(references))
    checks.fits_model(model_config.limits(planning.recipe.base), item, where)
    checks.continues(planning.recipe, item)
    reference = references[item.reference]
    data = rows.data(planning, item.name, item.data, item.filters, "pair", f"{where}.data", own)
    pairs = Stage(
        f"tokenize.{item.name}", kinds.TOKENIZE, params.TokenizeParams(max_length=item.max_length), {"tokenizer": base, "data": data}
    )
    scored = Stage(
        f"reference.{item.name}",
        kinds.REFERENCE,
        params.ReferenceParams(lora=_arithmetic(item.lora)),
        {"policy": reference, "pairs": pairs},
    )
    inputs = {"policy": policy, "pairs": pairs, "reference": scored}
    if reference is not policy:
        inputs["reference_policy"] = reference  # a few pairs are scored again before training
    asked = params.DpoParams(
        training=_part(item, Training),
        dpo=_part(item, DpoLoss),
        reference_is_start=reference is policy,
        seed=planning.recipe.seed,
    )
    return Stage(f"dpo.{item.name}", kinds.DPO, asked, inputs)


def _evaluate(planning: Planning, name: str, policy: Stage) -> Stage:
    """Measure a policy on everything that the recipe holds out."""
    evaluate = planning.recipe.evaluate or Evaluate()
    inputs: dict[str, Stage | Asset] = {"policy": policy}
    tasks = []
    for task in evaluate.tasks:
        where = f"evaluate.tasks.{task.label}"
        text = eval_tasks.check(task, planning.recipe_folder, where)
        if task.source:
            inputs[f"task.{task.source}"] = rows.held_out_source(planning, task.source, where, "question")
        tasks.append(params.Task(**{**task.model_dump(exclude={"optional"}), "name": task.label, "yaml": text}))
    for source in evaluate.preferences:
        inputs[f"preferences.{source}"] = rows.held_out_source(planning, source, "evaluate.preferences", "pair")
    if evaluate.conversations:
        inputs["conversations"] = rows.held_out_source(planning, evaluate.conversations, "evaluate.conversations", "conversation")
    if evaluate.answers:
        written = _answers(planning, name, policy, evaluate)
        inputs |= {"answers": written, **{key: each for key, each in written.inputs.items() if key != "policy"}}
    asked = params.EvaluateParams(
        tasks=tuple(tasks),
        max_length=evaluate.max_length,
        averages={name: average.mean_of for name, average in evaluate.averages.items()},
        too_long=evaluate.too_long,
    )
    return Stage(f"evaluate.{name}", kinds.EVALUATE, asked, inputs)


def _answers(planning: Planning, name: str, policy: Stage, evaluate: Evaluate) -> Stage:
    """Let a policy answer held-out prompts."""
    sets, prompts = rows.answer_sets(planning, evaluate.answers)
    asked = params.AnswersParams(sets=sets, max_length=evaluate.max_length, seed=planning.recipe.seed)
    return Stage(f"answers.{name}", kinds.ANSWERS, asked, {"policy": policy, **prompts})


def _gate(
    planning: Planning, item: Round, old: Stage, new: Stage, old_scores: Stage, new_scores: Stage, pitted: Mapping[str, Stage]
) -> Stage:
    """Decide between the round's new policy and the one it started from; without rules the new one goes on."""
    gate = item.gate or planning.recipe.gate
    if gate is None:
        return new
    checks.gate(planning.recipe, gate, item, planning.recipe_folder)
    inputs: dict[str, Stage | Asset] = {"current": old, "candidate": new, "current_scores": old_scores, "candidate_scores": new_scores}
    inputs |= judged.gating(planning.recipe, gate, item, pitted)
    return Stage(f"gate.{item.name}", kinds.GATE, params.GateParams(**dict(gate)), inputs)


def _manifest(planning: Planning, last: list[Stage]) -> Stage:
    """Write down what the rows are, as far as `last` and all that leads there read any."""
    of_rows = [stage for stage in parents_first(last) if stage.kind.about_rows]
    uses = planning.uses
    asked = params.ManifestParams(
        name=planning.recipe.name,
        description=planning.recipe.description,
        sources={
            name: params.Known(
                licence=uses[name].licence,
                verified=sources.load(uses[name].source).verified,
                origin=sources.load(uses[name].source).origin,
            )
            for name in planning.sources
        },
        missing_benchmarks=planning.held_out.missing,
        unknown_tasks=planning.held_out.unknown_tasks,
    )
    return Stage("manifest", kinds.MANIFEST, asked, {stage.name: stage for stage in of_rows})


def _export(planning: Planning, policy: Stage, rounds: list[Stage], evaluations: Mapping[str, Stage], manifest: Stage) -> Stage:
    """Make the finished model folder with its card."""
    recipe = planning.recipe
    inputs = {"policy": policy, "manifest": manifest}
    inputs |= {stage.name: stage for stage in (*rounds, *planning.sources.values())}
    inputs |= {stage.name: stage for stage in evaluations.values()} if recipe.evaluate else {}
    asked = params.ExportParams(
        name=recipe.export.model_name or recipe.name,
        description=recipe.description,
        licence=recipe.export.licence,
        language=recipe.export.language,
        dtype=recipe.export.dtype,
        modelfile=recipe.export.modelfile,
        licences={name: use.licence for name, use in recipe.sources.items() if use.licence},
        base=_start(recipe.base),
    )
    return Stage("export", kinds.EXPORT, asked, inputs)


def _report_params(recipe: Recipe) -> params.ReportParams:
    """Give the report the whole recipe less local paths: it is what the reader wants to see."""
    plain = recipe.stored(exclude={"wandb", "published_steps"})
    for name, judge in recipe.judges.items():  # what is in no key, and a reader wants to know
        plain["judges"][name] |= {field: value for field in ("endpoint", "licence", "policy") if (value := getattr(judge, field, None))}
    return params.ReportParams(recipe=_without_paths(plain))


def _start(base: Base) -> Start:
    """Return what a key says about the starting model: all but what enters it by content, as an input or a text."""
    return TypeAdapter(Start).validate_python(base.model_dump(exclude={"path", "chat_template", "tokenizer_data"}))


def _arithmetic(lora: Lora | None) -> Lora | None:
    """Tell the reference what in a round's adapter changes its numbers; a fresh adapter adds exactly nothing."""
    return lora if lora and (lora.load_in_4bit or lora.start == "continue") else None


def _part(section: Section, base: type[S]) -> S:
    """Return the fields that a section inherits from `base`."""
    return base.model_validate({name: getattr(section, name) for name in base.model_fields})


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_paths(v) for k, v in value.items() if k not in ("path", "chat_template")}
    return [_without_paths(v) for v in value] if isinstance(value, list) else value
