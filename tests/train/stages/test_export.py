"""The model card of runs built by hand: it says what made the exported weights, and nothing of what was rejected.

Covers: train/stages/base.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file

from rounds.data_prep.records import Conversation
from rounds.train.config.cluster import Machine
from rounds.train.engine import policy
from rounds.train.engine.params import ExportParams
from rounds.train.stages import export
from rounds.train.weights import models
from tests import staged

TINY = {"kind": "tiny"}
CPU = Machine(device="cpu", threads=1)


class Store:
    """Stage folders written by hand, in the shape that stages leave behind; `inputs` are those of `export`."""

    def __init__(self, root: Path) -> None:
        self.root, self.inputs, self.policy = root, {}, ""

    def stage(self, name: str, inputs: dict[str, str], params: dict, counts: dict | None, **files: Any) -> str:
        """Write a finished stage, or a skipped one where `counts` is None; returns its folder's name."""
        function = name.partition(".")[0]
        folder = self.root / f"{function}-{len(list(self.root.iterdir())):016x}"
        folder.mkdir()
        # The name in the file is another recipe's: a stage's key does not hold it.
        spec = staged.described(f"{function}.elsewhere", params, {key: {"stage": other} for key, other in inputs.items()})
        skipped = {"status": "skipped", "because": "the rounds ended at gate.one: rejected"}
        done = {"digests": {}, **(skipped if counts is None else {"status": "done", "counts": counts})}
        for file, content in {"stage": spec, "done": done, **files}.items():
            (folder / f"{file}.json").write_text(json.dumps(content))
        return folder.name

    def source(self, name: str, licence: str | None = "MIT") -> str:
        """Write a source of the run."""
        counts = {"records": 999, "licence": licence, "repository": f"some/{name}", "revision": "0123abc"}
        use = {"use": {"source": name.partition("_")[0], "split": name.partition("_")[2]}}
        made = self.stage(f"source.{name}", {}, use, counts)
        self.inputs[f"source.{name}"] = self.root / made
        return made

    def base(self) -> None:
        """Write the base."""
        self.policy = self.stage("base", {}, {}, {}, policy={"kind": "base", "weights": "model", "revision": None})
        rows = {"not_compared_with": ["pubmedqa"], "warnings": ["other: 'a | b' is not known here"]}
        self.inputs["manifest"] = self.root / self.stage("manifest", {}, {}, {}, manifest=rows)

    def train(self, name: str, sets: dict[str, int], lora: bool = False, skipped: bool = False, **dropped: int) -> str:
        """Write the data, the tokens and the training of one stage, from the policy so far on."""
        method = name.partition(".")[0]
        given = {f"source.{each}": self.source(each) for each in sets}
        data = self.stage("data", given, {"filters": [{"name": "exact_dedup"}]}, {"in": sets, "out": sets})
        tokens = self.stage("pack" if method == "sft" else "tokenize", {"data": data}, {}, {"dropped": dropped})
        params: dict[str, Any] = {"training": {"num_train_epochs": 1.5}}
        params |= {"dpo": {"beta": 0.1, "loss_type": ["sigmoid"]}} if method == "dpo" else {}
        inputs = {"policy": self.policy, "rows" if method == "sft" else "pairs": tokens}
        made = {} if skipped else {"policy": {"kind": "adapter" if lora else "weights", "start": self.policy}}
        return self.stage(name, inputs, params, None if skipped else {}, **made)

    def sft(self, **options: Any) -> None:
        """Write SFT on two sources, of which the filters left nothing of one."""
        self.policy = self.train("sft", {"facts_train": 70, "empty_train": 0}, **options)

    def round(self, name: str, decision: str | None, **options: Any) -> None:
        """Write a round and its gate; without a decision there is none."""
        new = self.train(f"dpo.{name}", {f"pairs_{name}": 40}, skipped=decision == "skipped", **options)
        self.inputs[f"dpo.{name}"] = self.root / new
        if decision is None:
            self.policy = new
            return
        winner = new if decision == "accepted" else self.policy
        rules = [] if decision == "skipped" else [{"says": f"facts/acc is {decision}", "holds": decision == "accepted"}]
        self.policy = self.stage(
            f"gate.{name}",
            {"current": self.policy, "candidate": new},
            {},
            {"decision": decision},
            policy={"kind": "same", "start": winner},
            decision={"decision": decision, "rules": rules},
        )
        self.inputs[f"gate.{name}"] = self.root / self.policy

    def evaluate(self, *names: str) -> None:
        """Measure policies: on a task with a source, one without, and held-out pairs."""
        held = {
            "task.facts_heldout": self.source("facts_heldout"),
            "preferences": self.source("other_heldout", "a | b"),
        }
        tasks = [{"name": "facts", "task": "choice", "source": "facts_heldout", "limit": 4, "num_fewshot": 0, "yaml": ""},
                 {"name": "own", "task": "pubmedqa", "source": None, "limit": None, "num_fewshot": 0, "yaml": None}]  # fmt: skip
        scores = {
            "facts/acc": {"value": 0.5, "stderr": 0.1, "n": 4},
            "own/acc": {"value": 0.25, "stderr": None, "n": 9},
        }
        for name in names:
            made = self.stage(f"evaluate.{name}", {"policy": "any", **held}, {"tasks": tasks}, {}, scores=scores)
            self.inputs[f"evaluate.{name}"] = self.root / made

    def card(self, **asked: Any) -> str:
        """Return the card of the policy so far."""
        params = {"name": "clinic", "description": "", "licence": None, "licences": {}, "base": TINY, **asked}
        return export.card(ExportParams.model_validate(params), {"policy": self.root / self.policy, **self.inputs})


@pytest.fixture
def run(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.base()
    return store


def tags(card: str) -> list[str]:
    return yaml.safe_load(card.split("---")[1])["tags"]


def section(card: str, title: str) -> str:
    """Return the text under a heading, up to the next."""
    assert f"# {title}\n" in card, card
    return card.partition(f"# {title}\n")[2].partition("\n#")[0]


def test_every_round_accepted(run: Store):
    run.sft()
    run.round("one", "accepted")
    run.round("two", "accepted")
    run.evaluate("base", "sft", "one", "two")
    card = run.card()
    assert "**These weights: the policy after `two`**, made by base → sft → one → two:" in card
    assert tags(card) == ["medical", "sft", "dpo", "not-for-clinical-use"]
    assert "- `one`: Direct Preference Optimization (sigmoid, beta 0.1) of all weights; epochs: 1.5\n" in card
    assert "| metric | base | sft | one | **two (these weights)** |\n|---|---:|---:|---:|---:|\n" in card
    assert "| facts/acc |" + " 0.5000 ± 0.1000 |" * 4 in card and "| own/acc |" + " 0.2500 |" * 4 in card
    assert "Preference tuning" in section(card, "Limits")
    assert "elsewhere" not in card.replace("from elsewhere", ""), "the names are this run's"


def test_a_rejected_and_a_skipped_round_are_not_in_what_made_the_weights(run: Store):
    run.sft()
    run.round("one", "rejected")
    run.round("two", "skipped")
    run.evaluate("base", "sft", "one")
    card = run.card()
    assert "**These weights: the policy after `sft`**, made by base → sft:" in card
    assert tags(card) == ["medical", "sft", "not-for-clinical-use"]
    assert "Preference" not in card and "pairs_" not in card
    assert "- `one`: **rejected**, not part of these weights; facts/acc is rejected\n" in card
    assert "- `two`: **skipped**, not part of these weights; the rounds ended at gate.one: rejected\n" in card
    assert "| metric | base | **sft (these weights)** | one (rejected) |\n" in card


def test_a_round_after_a_rejected_one_starts_from_the_policy_before_it(run: Store):
    run.sft()
    run.round("one", "rejected")
    run.round("two", "accepted")
    card = run.card()
    assert "made by base → sft → two:" in card
    assert "pairs_two" in section(card, "Trained on") and "pairs_one" not in card


def test_data_is_what_was_trained_on_apart_from_what_was_evaluated_on(run: Store):
    run.sft(longer_than_max_length=3, no_answer_tokens=2)
    run.evaluate("base", "sft")
    card = run.card()
    trained, evaluated = section(card, "Trained on"), section(card, "Evaluated on, never trained on")
    assert "| sft | facts_train | facts, train | 70 | some/facts_train | 0123abc | MIT |\n" in trained
    assert "empty_train" not in card, "no row of it was left"
    assert "`sft`, 5 more were dropped" in trained
    assert "longer_than_max_length (3), no_answer_tokens (2).\n" in trained
    assert "heldout" not in trained and "facts_train" not in evaluated
    assert "| facts_heldout | facts, heldout | facts (first 4) | 999 | some/facts_heldout | 0123abc | MIT |\n" in evaluated
    assert "| other_heldout | other, heldout | preferences | 999 | some/other_heldout | 0123abc | a \\| b |\n" in evaluated
    assert "- own: the lm-eval task `pubmedqa` on its own data" in evaluated
    assert "No filter compared the training rows of sft with these sets" in evaluated
    assert "same source as training rows: facts_heldout." in section(card, "Limits")


def test_adapters_are_said_to_be_merged(run: Store):
    run.sft(lora=True)
    run.round("one", "accepted", lora=True)
    card = run.card()
    assert card.count("of a LoRA adapter, merged into the weights") == 2
    assert "made by base → sft → one:" in card


def test_rounds_without_sft_gate_or_evaluation(run: Store):
    run.round("one", None)
    card = run.card(base={"kind": "hub", "id": "some/model", "revision": "fedc" * 10})
    assert f"Made with Rounds from some/model at revision `{'fedc' * 10}`." in card
    assert "made by base → one:" in card and "- `one`: **went on**, part of these weights; no gate was set\n" in card
    assert tags(card) == ["medical", "dpo", "not-for-clinical-use"]
    assert "Evaluated on" not in card and "Nothing was measured." in card


def test_without_rounds(run: Store):
    run.sft()
    run.evaluate("base", "sft")
    card = run.card()
    assert "made by base → sft:" in card and "## Rounds" not in card


def test_with_every_round_rejected_and_no_sft_the_base_is_exported(run: Store):
    run.round("one", "rejected")
    run.evaluate("base", "one")
    card = run.card(base={"kind": "local"})
    assert "**These weights: the base, unchanged.**" in card
    assert tags(card) == ["medical", "not-for-clinical-use"]
    assert "Nothing: these are the weights of the base." in section(card, "Trained on")
    assert "learnt from" not in card and "| **base (these weights)** | one (rejected) |" in card


def test_it_is_not_for_clinical_use_before_anything_else(run: Store):
    run.sft()
    text = run.card(description="Knows everything.", licence="mit").split("---\n")[2]
    assert text.lstrip().startswith("# clinic\n\n**Not for clinical use.** This is a research artefact.")
    assert "Knows everything." in text and "No licence of the weights" not in text


def test_what_people_write_stands_in_the_card_as_text(run: Store):
    run.sft()
    said = "<img src=x onerror=alert(1)> | **safe**\n\n# For clinical use"
    text = run.card(name=said, description=said, licences={"facts": said})
    assert "<img" not in text.split("---\n")[2] and "\n# For" not in text
    assert text.count(r"&lt;img src=x onerror=alert(1)&gt; \| \*\*safe\*\* # For clinical use") >= 2


def test_the_card_names_the_data_card_and_its_warnings(run: Store):
    run.sft()
    run.evaluate("base", "sft")
    card = run.card()
    assert "[DATA_CARD.md](DATA_CARD.md), with 1 warning to read before use." in card
    (run.inputs["manifest"] / "manifest.json").write_text(json.dumps({"not_compared_with": [], "warnings": []}))
    card = run.card()
    assert "[DATA_CARD.md](DATA_CARD.md)." in card
    assert "`pubmedqa` on its own data, whose rows no training row may come from" in card


@pytest.mark.parametrize("lora", [None, {"r": 4, "target_modules": ["q_proj", "embed_tokens"]}], ids=["weights", "lora"])
def test_the_folder_is_written_as_its_base_was_published(
    run_stage: Callable, shelf: Path, put: Callable, conversations: list[Conversation], lora: dict | None
):
    """In the base's type, with its sampling defaults and all tokens that end an answer, and its cache on, which training switches off."""
    base = shelf / "base" / "model"
    plain = models.load_model(policy.read(shelf / "base"), CPU, torch.bfloat16)
    plain.save_pretrained(base)
    said = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "eos_token_id": [3, 4], "bos_token_id": 0, "pad_token_id": 1}
    (base / "generation_config.json").write_text(json.dumps(said))
    rows, _ = run_stage("pack", "pack", {"max_length": 96}, {"tokenizer": shelf / "base", "data": put("data", conversations)})
    training = {"learning_rate": 1e-3, "global_batch_size": 4, "max_length": 96, "num_train_epochs": 0.2, "lora": lora}
    sft, _ = run_stage("sft", "sft", {"training": training, "seed": 1}, {"policy": shelf / "base", "rows": rows})
    folder = shelf / "exported"
    export.write(sft, "base", folder, CPU)
    config, settings = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "generation_config"))
    assert (config["dtype"], config["use_cache"]) == ("bfloat16", True)
    assert {name: settings[name] for name in said} == said and config["eos_token_id"] == [3, 4]
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
        assert {weights.get_slice(name).get_dtype() for name in names} == {"BF16"}
    export.write(sft, "fp32", shelf / "wide", CPU)
    assert (shelf / "wide" / "model.safetensors").stat().st_size > 1.8 * (folder / "model.safetensors").stat().st_size
    trained = load_file(shelf / "wide" / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert not torch.equal(trained, trained.bfloat16().float()), "merged in the base's type, and only then widened"


def test_the_card_says_to_the_hub_what_the_recipe_and_the_data_say(run: Store):
    run.sft()
    told: Any = ModelCard(
        run.card(licence="llama3", language=["en", "de"], base={"kind": "hub", "id": "org/base", "revision": "0" * 40})
    ).data
    assert (told.license, told.language, told.base_model) == ("llama3", ["en", "de"], "org/base")
    assert told.datasets == ["some/facts_train"]
    silent: Any = ModelCard(run.card()).data
    assert (silent.license, silent.language, silent.base_model) == (None, None, None)
