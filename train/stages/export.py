"""Stage `export`: the finished model as an ordinary Hugging Face folder, with its model card.

In: `policy` (the last accepted one), the sources, rounds, gates and evaluations of the run. Out: `model/`: safetensors,
config, generation config, tokenizer with template, and README.md, the model card; Ollama's Modelfile where asked for. Adapters are merged.

The card says what made these weights and nothing else: it follows `policy.json` from the exported policy down to the
base, and from each training stage on that way to the data stage whose rows it read.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rounds.data_prep.errors import UserError
from rounds.data_prep.schema import SourceParams
from rounds.train.config.cluster import Machine
from rounds.train.config.judging import Weights
from rounds.train.config.recipe import StartHub, StartLocal
from rounds.train.engine import policy, store
from rounds.train.engine.params import EvaluateParams, ExportParams, RankParams
from rounds.train.engine.policy import Policy
from rounds.train.engine.records import MANIFEST, POLICY, Counts, Decision
from rounds.train.reports import markdown
from rounds.train.reports.steps import Finished, Step, find_steps, finished
from rounds.train.tokens import chat, modelfile
from rounds.train.weights import models, portable

logger = logging.getLogger(__name__)
DATA_CARD = ("DATA_CARD.md", MANIFEST)
_SAMPLING = ("temperature", "top_p", "top_k")
"""Of how a base was published to be sampled, what Ollama calls by the same names."""


def run(params: ExportParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Load the final policy, merge its adapters, and write it with the card."""
    model = write(inputs["policy"], params.dtype, out / "model", machine)
    ollama = _write_modelfile(out / "model", model) if params.modelfile else {}
    (out / "model" / "README.md").write_text(card(params, inputs, (out / "model" / modelfile.NAME).is_file()), encoding="utf-8")
    for name in DATA_CARD:  # so that the folder can be passed on with what its rows were
        shutil.copyfile(inputs["manifest"] / name, out / "model" / name)
    return {"folder": "model", **models.count_parameters(model), **ollama}


def write(policy_folder: Path, dtype: str, folder: Path, machine: Machine) -> PreTrainedModel:
    """Write a policy as a model folder of its own, in the type that `ExportParams.dtype` names; returns the model."""
    described, start = policy.read(policy_folder), policy.read(policy.chain(policy_folder)[0])
    tokenizer, wanted = models.load_tokenizer(described), _dtype(dtype, start)
    loaded = wanted
    if described.adapters:  # merged in the wider of the base's type and the one to write, and rounded once
        loaded = torch.float32 if wanted == "auto" else torch.promote_types(wanted, _dtype("base", start))
    model = models.load_model(described, machine, dtype=loaded, attention="eager")
    if wanted not in ("auto", loaded):
        models.cast(model, wanted)
    _say_how_to_write(model, start, tokenizer)
    models.save_model(model, tokenizer, folder)
    portable.make(folder, tokenizer)
    return model


def _dtype(asked: str, start: Policy) -> Any:
    """Return the type of the weights to write; "auto" is that in which training left them."""
    if asked == "base":
        config = AutoConfig.from_pretrained(start.weights, revision=start.revision or "main", trust_remote_code=False)
        return config.dtype or config.get_text_config().dtype or torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}.get(asked, "auto")


def _say_how_to_write(model: PreTrainedModel, start: Policy, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the model the base's settings of generation, the end of an answer among the tokens that end one, and its cache, which is
    off in training. Config and generation config say the same."""
    settings = models.generation_settings(start)
    stop: Any = tokenizer.convert_tokens_to_ids(chat.check_template(tokenizer))
    ends = models.end_tokens((settings, model.generation_config), tokenizer)
    settings.bos_token_id, settings.pad_token_id, settings.eos_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id, ends
    model.generation_config = settings
    for config in (model.config, model.config.get_text_config()):
        config.bos_token_id, config.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
        config.eos_token_id = ends if len(ends) > 1 else stop
        config.use_cache = True


def _write_modelfile(folder: Path, model: PreTrainedModel) -> dict[str, str]:
    """Write Ollama's Modelfile into a model folder, or say why not: for this nobody trains again."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    settings = model.generation_config
    assert settings and isinstance(settings.eos_token_id, list)
    stops = tokenizer.convert_ids_to_tokens(settings.eos_token_id)
    known = {name: getattr(settings, name) for name in _SAMPLING} if settings.do_sample else {}
    try:
        text = modelfile.write(tokenizer, stops, {name: value for name, value in known.items() if value is not None})
    except UserError as error:
        logger.warning("no %s: %s", modelfile.NAME, error)
        return {"no_modelfile": str(error)}
    (folder / modelfile.NAME).write_text(text, encoding="utf-8")
    return {}


def card(asked: ExportParams, inputs: Mapping[str, Path], ollama: bool = False) -> str:
    """Write the model card of the policy in `inputs`; it reads the store, not the weights. `ollama` tells of a Modelfile."""
    chain = policy.chain(inputs["policy"])
    steps = find_steps({"rounds": _rounds(inputs)}, _stages(inputs, chain))
    by_folder = {step.stage.folder.name: step for step in steps}
    accepted = [by_folder[folder.name] for folder in chain]
    trained = [_training(step, asked.licences) for step in accepted[1:]]
    base = asked.base
    data = ModelCardData(
        license=asked.licence,
        base_model=base.id if isinstance(base, StartHub) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        language=list(asked.language) or None,
        datasets=list(dict.fromkeys(entry["id"] for each in trained for entry in each["sets"] if entry["id"])) or None,
        tags=["medical", *dict.fromkeys(each["method"] for each in trained), "not-for-clinical-use"],
    )
    measured = [step for step in steps if step.scores]
    rows = store.read_json(inputs["manifest"] / MANIFEST)
    assert rows
    text = markdown.render(
        "model_card.md.jinja",
        asked=asked,
        ollama=ollama,
        base=base.id
        if isinstance(base, StartHub)
        else "a local model folder"
        if isinstance(base, StartLocal)
        else "a small randomly initialised Llama",
        revision=base.revision if isinstance(base, StartHub) else None,
        accepted=accepted,
        trained=trained,
        evaluated=_evaluated_on(measured[0], inputs, asked.licences) if measured else {"sets": [], "tasks": []},
        rounds=[(step, _reasons(step, inputs)) for step in steps if step.stage.kind.is_round],
        not_compared=rows["not_compared_with"],
        warnings=rows["warnings"],
        measured=measured,
        metrics=list(dict.fromkeys(metric for step in measured for metric in step.scores)),
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def _rounds(inputs: Mapping[str, Path]) -> list[dict[str, str]]:
    return [{"name": name.removeprefix("dpo.")} for name in inputs if name.startswith("dpo.")]


def _stages(inputs: Mapping[str, Path], chain: Sequence[Path]) -> dict[str, Finished]:
    """Return the stages by their names in this run; a folder's own `name` may be that of another recipe's round.

    Every policy descends from the base and from SFT, so the chain holds these two whichever rounds were rejected.
    """
    known = {folder.name for name, folder in inputs.items() if name != "policy"}
    named = {store.spec(folder).function: folder for folder in chain if folder.name not in known}
    named |= {name: folder for name, folder in inputs.items() if name != "policy"}
    return {name: finished(name, folder) for name, folder in named.items()}


def _training(step: Step, licences: Mapping[str, str]) -> dict[str, Any]:
    """Say how a policy was trained, on which rows of the mix, and how many of these the tokeniser dropped."""
    stage = step.stage
    tokens = store.inputs(stage.folder)["pairs" if stage.kind.is_round else "rows"]
    data = store.inputs(tokens)["data"]
    sources = store.inputs(data)
    given = store.counts(data)["out"]
    return {
        "step": step,
        "method": stage.kind.name,
        "is_round": stage.kind.is_round,
        "asked": stage.spec.record,
        "adapter": json.loads((stage.folder / POLICY).read_text())["kind"] == "adapter",
        "sets": [{**_set(name, sources[f"source.{name}"], licences), "rows": rows} for name, rows in given.items() if rows],
        "dropped": store.counts(tokens)["dropped"],
        "decontaminated": any(use["name"] == "decontaminate" for use in store.spec(data).params["filters"]),
    }


def _evaluated_on(step: Step, inputs: Mapping[str, Path], licences: Mapping[str, str]) -> dict[str, Any]:
    """List the sets that every policy was measured on, and for what, and the tasks with data of their own."""
    assert step.evaluation
    names = {folder: name.removeprefix("source.") for name, folder in inputs.items() if name.startswith("source.")}
    asked = step.evaluation.spec.record
    assert isinstance(asked, EvaluateParams)
    sets = []
    for key, folder in store.inputs(step.evaluation.folder).items():
        if key in ("policy", "answers"):
            continue
        uses = [task.name + (f" (first {task.limit})" if task.limit else "") for task in asked.tasks if key == f"task.{task.source}"]
        name = key.removeprefix("task.") if uses else names[folder]
        sets.append({**_set(name, folder, licences), "used_for": ", ".join(uses or [key.partition(".")[0].replace("prompts", "answers")])})
    return {"sets": sets, "tasks": [task for task in asked.tasks if not task.source]}


def _set(name: str, folder: Path, licences: Mapping[str, str]) -> dict[str, Any]:
    """Describe a source: `origin` tells whether two sets are splits of the same rows. Of a round's own pairs, say who judged."""
    spec, counts = store.spec(folder), store.counts(folder)
    if spec.kind.pairs_up:
        return _own_pairs(name, folder)
    params, path = spec.record, spec.inputs.get("path")
    assert isinstance(params, SourceParams)
    use = params.use
    repository = counts["repository"]
    return {
        "name": name,
        "split": f"{use.source}, {use.split}",
        "rows": counts["records"],
        "id": repository,
        "repository": f"local copy of {repository}" if repository and path else repository,
        "revision": counts["revision"],
        "licence": licences.get(name) or counts["licence"],
        "origin": (use.source, path.digest if path else None),
    }


def _own_pairs(name: str, folder: Path) -> dict[str, Any]:
    ranks = [store.spec(path).record for key, path in store.inputs(folder).items() if key.startswith("rank.")]
    judges = [_judge(each) for each in ranks if isinstance(each, RankParams)]
    return {
        "name": name,
        "split": "answers of the policy before the round",
        "rows": store.counts(folder)["records"],
        "id": None,
        "repository": None,
        "revision": None,
        "licence": "that of the weights",
        "origin": (name, folder.name),
        "judges": judges,
    }


def _judge(asked: RankParams) -> str:
    """Name a judge, what it is, and its licence where it has weights."""
    judge = asked.judge
    if not isinstance(judge, Weights):
        return f"{asked.name} ({judge.kind})"
    where = f"{judge.id} at {judge.revision}" if judge.id else "a local folder"
    return f"{asked.name} ({judge.kind}: {where}, licence {judge.licence or 'not stated'})"


def _reasons(step: Step, inputs: Mapping[str, Path]) -> list[str]:
    """Say why a round went on or did not."""
    if step.status == "skipped":
        return [step.because]
    if step.status == "trained":
        return ["no gate was set"]
    return [rule.says for rule in (store.decision(inputs[f"gate.{step.name}"]) or Decision(decision="")).rules]
