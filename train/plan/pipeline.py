"""The shape of a run: a recipe in, the stages of the run out. The only place that knows how stages follow each other.

    source.*  ->  data.sft   ->  pack ->  sft  --+
    source.*  ->  data.ROUND ->  tokenize.ROUND  |
                                     |           v
    for each round:     reference.ROUND  ->  dpo.ROUND  ->  evaluate.ROUND  ->  gate.ROUND  -> next round
    at the end:         manifest (of all rows), export, report

The number after a stage's function is its version: raise it when that stage's code changes its answer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rounds.data_prep import filters, sources
from rounds.data_prep.errors import UserError, nearest
from rounds.data_prep.render import system_prompt
from rounds.data_prep.schema import Filters, FilterUse, Mix, Section, SourceUse
from rounds.train.config import yaml_file
from rounds.train.config.evaluation import Evaluate, Gate
from rounds.train.config.recipe import Base, Hub, Local, Recipe, Tiny
from rounds.train.config.training import DpoLoss, Lora, Round, Training
from rounds.train.engine import digests
from rounds.train.engine.graph import Asset, Stage, parents_first
from rounds.train.engine.policy import MODEL_FILES
from rounds.train.plan import eval_tasks, model_config
from rounds.train.plan import held_out as held_out_sets


@dataclass(frozen=True)
class Plan:
    """All stages of a run, parents first, and what the run is called."""

    recipe: Recipe
    stages: tuple[Stage, ...]
    held_out: held_out_sets.HeldOut
    """What training rows are compared with, and what they cannot be compared with."""
    scores: Stage
    """Holds the scores of the policy that the run ends with: an evaluation, or the last round's gate."""

    def stage(self, name: str) -> Stage:
        """Return the stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)


def build_plan(recipe: Recipe, root: Path, recipe_folder: Path, *, read_files: bool = True) -> Plan:
    """List everything that a recipe asks for. Raises `UserError` for a name that refers to nothing.

    `root` is the store, where digests of local files are remembered; `recipe_folder` is where shared files such as
    `eval_tasks/` are looked for first. Without `read_files` the user's own files need not be there: the stages are the
    same, but their keys mean nothing. That is for asking what a run needs on a machine that does not have it.
    """
    build = _Builder(recipe, root, recipe_folder, read_files)
    policy = base = build.base()
    evaluations: dict[str, Stage] = {"base": build.evaluate("base", base)}
    references = {"base": base}
    if recipe.sft:
        policy = build.sft(base)
        evaluations["sft"] = build.evaluate("sft", policy)
        references["sft"] = policy
    judged = evaluations["sft" if recipe.sft else "base"]
    rounds: list[Stage] = []
    for item in recipe.rounds:
        new = build.dpo(item, policy, {**references, "previous": policy}, base)
        evaluations[item.name] = build.evaluate(item.name, new)
        policy = build.gate(item, policy, new, judged, evaluations[item.name])
        judged = policy if policy is not new else evaluations[item.name]
        references[item.name] = policy
        rounds += [new] if policy is new else [new, policy]
    manifest = build.manifest([policy, *evaluations.values()] if recipe.evaluate else [policy])
    export = build.export(policy, rounds, evaluations, manifest)
    stages = parents_first([*evaluations.values(), export]) if recipe.evaluate else parents_first([export])
    report = Stage("report", "report", build.report_params(), {s.name: s for s in stages}, after_stop=True)
    return Plan(recipe, (*stages, report), build.held_out, judged)


class _Builder:
    """Makes the stages of one recipe. Each source is one stage, however often it is used."""

    def __init__(self, recipe: Recipe, root: Path, recipe_folder: Path, read_files: bool) -> None:
        self.recipe, self.root, self.recipe_folder, self.read_files = recipe, root, recipe_folder, read_files
        self.made: dict[str, Stage] = {}
        self.held_out = held_out_sets.held_out(recipe)
        self.uses = {**self.held_out.uses, **recipe.sources}
        self.positions = model_config.positions(recipe.base)
        for name in recipe.allow_unlicensed:
            self.check_named(name, "allow_unlicensed")

    def source(self, name: str, wanted_by: str, training: bool) -> Stage:
        """Fetch one set of rows, the recipe's or a benchmark's; refuse to train on a split that is for evaluation."""
        use = self.uses[name]
        registered = _checked_source(name, use)
        if training and use.split in registered.evaluation_only:
            raise UserError(
                f"{wanted_by}: split {use.split!r} of {use.source} is for evaluation only; do not train on it"
            )
        if name not in self.made:
            home = registered.home(use)
            params = {
                # A licence that is stated later, or better, must not train everything again.
                "use": use.model_dump(mode="json", exclude={"path", "licence", "phi", "system_prompt"}),
                "source_version": registered.version,
                "repository": home.repository if home else None,
                "revision": home.revision if home and not use.path else None,
                **self.changes(name, use, registered),
            }
            inputs = {"path": self.asset(use.path, f"sources.{name}.path")} if use.path else {}
            self.check_licence(name, use, registered)
            self.made[name] = Stage(f"source.{name}", "source", params, inputs, 7)
        return self.made[name]

    def check_named(self, name: str, wanted_by: str) -> None:
        """Refuse a name that is not under `sources`."""
        if name not in self.recipe.sources:
            raise UserError(
                f"{wanted_by}: no source is named {name!r} in the recipe. {nearest(name, self.recipe.sources)}"
            )

    def check_licence(self, name: str, use: SourceUse, registered: sources.Source) -> None:
        """Refuse rows whose licence nobody has stated, unless the recipe takes that upon itself."""
        if not (use.licence or registered.licence or name in self.recipe.allow_unlicensed):
            how = (
                "state `licence:`, or"
                if registered.kind_by_format
                else "its publisher states none; to use it all the same,"
            )
            raise UserError(f"sources.{name}.licence: no licence is known for these rows: {how} list the source under "
                            f"`allow_unlicensed: [{name}]`")  # fmt: skip

    def changes(self, name: str, use: SourceUse, registered: sources.Source) -> dict[str, Any]:
        """Return what is done to every row of a source: a system prompt said first, and the mask over who a person is."""
        found: dict[str, Any] = {}
        if use.system_prompt:
            try:
                found["system_prompt"] = system_prompt(Path(use.system_prompt))
            except UserError as error:
                raise UserError(f"sources.{name}.system_prompt: {error}") from None
        phi = FilterUse.model_validate({"name": "phi"}) if use.phi is None and registered.kind_by_format else use.phi
        if isinstance(phi, FilterUse):
            try:
                _checked_filter(phi)
            except UserError as error:
                chosen = "" if use.phi else " (on by default for your own files)"
                raise UserError(
                    f"sources.{name}.phi{chosen}: {error}. `phi: off` leaves the rows as they are"
                ) from None
            found["phi"] = phi.model_dump(mode="json")
        return found

    def asset(self, path: str, field: str, patterns: tuple[str, ...] = ("*",)) -> Asset:
        """Digest one of the user's files, or a folder's files that fit a pattern."""
        if not self.read_files:
            return Asset(Path(path), f"not read: {path}", patterns)
        try:
            return digests.asset(self.root, Path(path), patterns)
        except UserError as error:
            raise UserError(f"{field}: {error}") from None

    def text(self, path: str, field: str) -> str:
        """Read a small file whose text is part of a key: the recipe's, or one that all recipes share."""
        try:
            return (yaml_file.find(path, self.recipe_folder) or Path(path)).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{field}: {path}: {error.strerror}") from None

    def base(self) -> Stage:
        """Make the starting model: trained on nothing (tiny), found in a folder, or fetched from the hub."""
        base = self.recipe.base
        template = self.text(base.chat_template, "base.chat_template") if base.chat_template else None
        params: dict[str, Any] = {"base": _described(base), "chat_template": template}
        if isinstance(base, Tiny):
            return Stage("base", "base", {**params, "seed": self.recipe.seed}, {"corpus": self.corpus(base)}, 1)
        inputs = {"model": self.asset(base.path, "base.path", MODEL_FILES)} if isinstance(base, Local) else {}
        assert isinstance(base, Local | Hub)
        return Stage("base", "base", params, inputs, 1)

    def corpus(self, base: Tiny) -> Stage:
        """Find the conversations that a tiny model's tokenizer is trained on."""
        if base.tokenizer_data is not None:
            return self.data("tokenizer", base.tokenizer_data, None, "conversation", "base.tokenizer_data")
        if not self.recipe.sft:
            raise UserError("base: kind `tiny` trains its tokenizer on the sft data; give the recipe an sft section, or "
                            "base.tokenizer_data")  # fmt: skip
        return self.sft_data()

    def data(self, name: str, mix: Mix, own_filters: Filters | None, kind: str, where: str) -> Stage:
        """Filter and mix sources into one training set."""
        used = own_filters if own_filters is not None else self.recipe.filters
        for use in used:
            _checked_filter(use)
        for item in mix:
            self.check_named(item.name, where)
        inputs = {f"source.{item.name}": self.source(item.name, where, training=True) for item in mix}
        self.check_mix(mix, where, ("conversation", "question") if kind == "conversation" else (kind,))
        if any(use.name == "decontaminate" for use in used):
            inputs |= {
                f"heldout.{source}": self.source(source, "evaluate", training=False) for source in self.held_out.uses
            }
        params = {
            "mix": [item.model_dump(mode="json") for item in mix],
            "filters": [use.model_dump(mode="json") for use in used],
            "seed": self.recipe.seed,
            "kind": kind,
        }
        return Stage(f"data.{name}", "data", params, inputs, 8)

    def check_mix(self, mix: Mix, where: str, kinds: tuple[str, ...]) -> None:
        """Refuse a source of the wrong kind, or one that stands twice in a mix."""
        names = [item.name for item in mix]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"{where}: source {name!r} stands twice; give it once, with the share you want")
            self.check_kind(name, where, kinds)

    def check_kind(self, name: str, where: str, kinds: tuple[str, ...]) -> None:
        """Refuse a source whose records are of none of these kinds."""
        use = self.recipe.sources[name]
        found = sources.load(use.source).kind(use)
        if found not in kinds:
            raise UserError(
                f"{where}: source {name!r} holds {found}s, expected {' or '.join(f'{kind}s' for kind in kinds)}"
            )

    def sft_data(self) -> Stage:
        """Make the instruction set."""
        sft = self.recipe.sft
        assert sft
        return self.data("sft", sft.data, sft.filters, "conversation", "sft.data")

    def sft(self, base: Stage) -> Stage:
        """Tokenise and pack on a CPU, then train."""
        sft = self.recipe.sft
        assert sft
        self.check_length(sft, "sft")
        if sft.lora and sft.lora.start == "continue":
            raise UserError("sft.lora.start: nothing comes before sft that could be continued; set `merge`")
        pack = Stage("pack", "pack", {"max_length": sft.max_length},
                     {"tokenizer": base, "data": self.sft_data()}, 3)  # fmt: skip
        params = {"training": _dump(sft, Training), "seed": self.recipe.seed}
        return Stage("sft", "sft", params, {"policy": base, "rows": pack}, 2, row="train")

    def dpo(self, item: Round, policy: Stage, references: dict[str, Stage], base: Stage) -> Stage:
        """Tokenise the round's pairs, score them with the reference policy, and train from `policy`."""
        if item.reference not in references:
            raise UserError(f"rounds.{item.name}.reference: {item.reference!r} is no policy before this round. "
                            f"{nearest(item.reference, references)}")  # fmt: skip
        reference = references[item.reference]
        self.check_length(item, f"rounds.{item.name}")
        self.check_continues(item)
        data = self.data(item.name, item.data, item.filters, "pair", f"rounds.{item.name}.data")
        pairs = Stage(f"tokenize.{item.name}", "tokenize", {"max_length": item.max_length},
                      {"tokenizer": base, "data": data}, 2)  # fmt: skip
        inputs = {"policy": reference, "pairs": pairs}
        scored = Stage(f"reference.{item.name}", "reference", _arithmetic(item.lora), inputs, 3, row="train")
        params = {
            "training": _dump(item, Training),
            "dpo": _dump(item, DpoLoss),
            "reference_is_start": reference is policy,
            "seed": self.recipe.seed,
        }
        inputs = {"policy": policy, "pairs": pairs, "reference": scored}
        if reference is not policy:
            inputs["reference_policy"] = reference  # a few pairs are scored again before training
        return Stage(f"dpo.{item.name}", "dpo", params, inputs, 2, row="train")

    def check_length(self, training: Training, where: str) -> None:
        """Refuse rows that are longer than the model was made to read: it has no positions for their end."""
        if self.positions and training.max_length > self.positions:
            raise UserError(
                f"{where}.max_length: {training.max_length} tokens, and the model's config says max_position_embeddings "
                f"{self.positions}: lower it, or scale the rotary embedding in config.json (rope_parameters)"
            )

    def check_continues(self, item: Round) -> None:
        """Refuse a round that is to go on with an adapter where the stage before it trains none of the same shape."""
        if item.lora is None or item.lora.start == "merge":
            return
        place = self.recipe.rounds.index(item)
        before = self.recipe.rounds[place - 1] if place else self.recipe.sft
        if before is None or not item.lora.same_adapter(before.lora):
            found = (
                "no stage comes before it"
                if before is None
                else f"the stage before it has lora {before.lora or 'not set'}"
            )
            raise UserError(
                f"rounds.{item.name}.lora.start: `continue` needs an adapter of the same r, lora_alpha, target_modules and "
                f"quantisation in the stage before, but {found}; make them equal, or set `merge`"
            )

    def evaluate(self, name: str, policy: Stage) -> Stage:
        """Measure a policy on everything that the recipe holds out."""
        evaluate = self.recipe.evaluate or Evaluate()
        inputs: dict[str, Stage | Asset] = {"policy": policy}
        found = []
        for task in evaluate.tasks:
            where = f"evaluate.tasks.{task.label}"
            file = eval_tasks.find(task.task, self.recipe_folder)
            text = eval_tasks.check(task, file, where)
            if task.source:
                inputs[f"task.{task.source}"] = self.heldout_source(task.source, where, "question")
            found.append({**task.model_dump(mode="json"), "name": task.label, "yaml": text})
        for source in evaluate.preferences:
            inputs[f"preferences.{source}"] = self.heldout_source(source, "evaluate.preferences", "pair")
        if evaluate.conversations:
            inputs["conversations"] = self.heldout_source(
                evaluate.conversations, "evaluate.conversations", "conversation"
            )
        params = {
            **evaluate.model_dump(mode="json", include={"num_answers", "max_new_tokens", "max_length"}),
            "tasks": found,
        }
        return Stage(f"evaluate.{name}", "evaluate", params, inputs, 2, row="infer")

    def heldout_source(self, name: str, where: str, kind: str) -> Stage:
        """Fetch a set that evaluation reads, and check that it is of the right kind and no training set."""
        self.check_named(name, where)
        stage = self.source(name, where, training=False)
        self.check_kind(name, where, (kind,))
        use = self.recipe.sources[name]
        trained = [self.recipe.sft] if self.recipe.sft else []
        for training in [*trained, *self.recipe.rounds]:
            for item in training.data:
                if _same_rows(use, self.recipe.sources.get(item.name)):
                    raise UserError(
                        f"{where}: source {name!r} is also trained on (as {item.name!r}); evaluate on another split, and give both uses of "
                        "a file the same `heldout_fraction`"
                    )
        return stage

    def gate(self, item: Round, old: Stage, new: Stage, old_scores: Stage, new_scores: Stage) -> Stage:
        """Decide between the round's new policy and the one it started from; without rules the new one goes on."""
        gate = item.gate or self.recipe.gate
        if gate is None:
            return new
        self.check_gate(gate, item)
        inputs = {"current": old, "candidate": new, "current_scores": old_scores, "candidate_scores": new_scores}
        return Stage(f"gate.{item.name}", "gate", gate.model_dump(mode="json"), inputs, 2, after_stop=True)

    def check_gate(self, gate: Gate, item: Round) -> None:
        """Refuse rules about something that nobody measures."""
        evaluate = self.recipe.evaluate or Evaluate()
        measured: dict[str, list[str] | None] = {
            task.label: eval_tasks.metrics(eval_tasks.find(task.task, self.recipe_folder)) for task in evaluate.tasks
        }
        measured |= (
            {"preferences": ["accuracy", "margin", "chosen_logp", "rejected_logp"]} if evaluate.preferences else {}
        )
        measured |= {"conversations": ["loss"]} if evaluate.conversations else {}
        has_prompts = evaluate.preferences or evaluate.conversations
        measured |= {"answers": ["tokens", "ended"]} if evaluate.num_answers and has_prompts else {}
        for rule in gate.rules:
            subject, _, rest = rule.metric.partition("/")
            known = measured.get(subject)
            # A task of lm-eval's own is not opened here, so its metrics are not known; a third part is a group of rows.
            if subject in measured and rest and (known is None or rest.partition("/")[0] in known):
                continue
            valid = [f"{name}/{metric}" for name, metrics in measured.items() for metric in metrics or ["..."]]
            raise UserError(f"gate of round {item.name!r}: metric {rule.metric!r} is not measured; expected task/metric. "
                            f"{nearest(rule.metric, valid)}")  # fmt: skip

    def manifest(self, last: list[Stage]) -> Stage:
        """Write down what the rows are, as far as `last` and all that leads there read any."""
        of_rows = [stage for stage in parents_first(last) if stage.function in ("source", "data", "pack", "tokenize")]
        params = {
            "name": self.recipe.name,
            "description": self.recipe.description,
            "sources": {
                name: {
                    "licence": self.uses[name].licence,
                    "verified": sources.load(self.uses[name].source).verified,
                    "origin": sources.load(self.uses[name].source).origin,
                }
                for name in self.made
            },
            "missing_benchmarks": list(self.held_out.missing),
            "unknown_tasks": list(self.held_out.unknown_tasks),
        }
        return Stage("manifest", "manifest", params, {stage.name: stage for stage in of_rows}, 3, after_stop=True)

    def export(self, policy: Stage, rounds: list[Stage], evaluations: dict[str, Stage], manifest: Stage) -> Stage:
        """Make the finished model folder with its card."""
        recipe = self.recipe
        inputs = {"policy": policy, "manifest": manifest}
        inputs |= {stage.name: stage for stage in rounds}
        inputs |= {stage.name: stage for stage in self.made.values()}
        inputs |= {stage.name: stage for stage in evaluations.values()} if recipe.evaluate else {}
        params = {
            "name": recipe.export.model_name or recipe.name,
            "description": recipe.description,
            "licence": recipe.export.licence,
            "licences": {name: use.licence for name, use in recipe.sources.items() if use.licence},
            "base": _described(recipe.base),
        }
        return Stage("export", "export", params, inputs, 4, after_stop=True)

    def report_params(self) -> dict[str, Any]:
        """Give the report the whole recipe less local paths: it is what the reader wants to see."""
        return {"recipe": _without_paths(self.recipe.model_dump(mode="json", exclude={"wandb", "published_steps"}))}


def _described(base: Base) -> dict[str, Any]:
    """Dump what a key says about the starting model: all but what enters it by content, as an input or a text."""
    return base.model_dump(mode="json", exclude={"path", "chat_template", "tokenizer_data"})


def _same_rows(evaluated: SourceUse, trained: SourceUse | None) -> bool:
    """Tell whether two uses share rows of one set, however many they keep and in whatever format they read a file."""
    if trained is None or any(
        getattr(evaluated, name) != getattr(trained, name) for name in ("source", "path", "revision")
    ):
        return False
    if evaluated.split == "heldout" and trained.split == "train":
        # Held out is what hashes below the fraction: a use of the file with a smaller one trains on the rows between.
        return trained.heldout_fraction < evaluated.heldout_fraction
    return evaluated.split == trained.split


def _checked_source(name: str, use: SourceUse) -> sources.Source:
    try:
        registered = sources.load(use.source)
        registered.check(use)
    except UserError as error:
        raise UserError(f"sources.{name}: {error}") from None
    if registered.kind_by_format and not use.path:
        raise UserError(f"sources.{name}.path: required for {use.source}: the file or folder with your rows")
    home = registered.home(use)
    if home and not (use.path or home.revision):
        raise UserError(f"sources.{name}.revision: give the commit of {home.repository} on the hub to use (none is pinned "
                        f"in the source's file), or `path:` of a local copy")  # fmt: skip
    return registered


def _checked_filter(use: Any) -> None:
    try:
        filters.settings(use)
    except ValidationError as error:
        raise UserError(yaml_file.explain(error, filters.section(use), f"filter {use.name}")) from None


def _arithmetic(lora: Lora | None) -> dict[str, Any]:
    """Tell the reference what in a round's adapter changes its numbers; a fresh adapter adds exactly nothing."""
    if lora is None or not (lora.load_in_4bit or lora.start == "continue"):
        return {}
    return {"lora": lora.model_dump(mode="json")}


def _dump(section: Section, base: type[Section]) -> dict[str, Any]:
    """Dump the fields that a section inherits from `base`."""
    return section.model_dump(mode="json", include=set(base.model_fields))


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_paths(v) for k, v in value.items() if k not in ("path", "chat_template")}
    return [_without_paths(v) for v in value] if isinstance(value, list) else value
