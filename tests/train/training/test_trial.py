"""What stages would die of is found at `base`, on a cut-down model; what they train well is let through.

Covers: train/weights/cut_down.
"""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BambaConfig, JambaConfig

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Cluster, Machine
from rounds.train.engine import digests, policy, store, worker
from rounds.train.engine.graph import Asset
from rounds.train.training import trial
from rounds.train.weights import cut_down, requirements
from tests import staged

TRAINING = {"learning_rate": 1e-5, "global_batch_size": 8, "max_length": 64}
WRITTEN = {"sets": [{"name": "open", "max_rows": None, "system_prompt": None}], "max_length": 64, "seed": 0}
CPU = Machine(device="cpu", threads=1)


def model(folder: Path, made_base: Path, kind: str, **shape: Any) -> Path:
    """Make a local model folder of an architecture, with the tokenizer of the tests."""
    tokenizer = AutoTokenizer.from_pretrained(made_base / "tokenizer")
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **shape)
    AutoModelForCausalLM.from_config(config, attn_implementation="eager").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


LLAMA = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}


def begin(source: Path, root: Path, cluster: Cluster, **training: Any) -> Path:
    """Let the worker make the base of a run with SFT, a round and an evaluation; returns its folder."""
    root.mkdir()
    files = Asset(source, digests.asset(root, source, policy.MODEL_FILES).digest, policy.MODEL_FILES)
    start = staged.stage("base", "base", {"base": {"kind": "local"}}, {"model": files})
    asked = {"training": {**TRAINING, **training}}
    tuned = staged.stage("sft", "sft", asked, {"policy": start})
    rest = [
        staged.stage("dpo.first", "dpo", asked, {"policy": tuned}),
        staged.stage("evaluate.sft", "evaluate", {}, {"policy": tuned}),
        staged.stage("answers.sft", "answers", WRITTEN, {"policy": tuned}),
    ]
    job = worker.Job(folder=store.prepare(root, start), machine=CPU, trials=requirements.trials(start, [start, tuned, *rest], cluster))
    worker.run(worker.Job.model_validate_json(job.model_dump_json()))
    return job.folder


def test_a_model_that_trains_is_let_through(tmp_path: Path, made_base: Path, caplog: pytest.LogCaptureFixture):
    source = model(tmp_path / "model", made_base, "llama", **LLAMA)
    with caplog.at_level(logging.INFO, trial.__name__):
        folder = begin(source, tmp_path / "store", Cluster(), lora={"target_modules": [r"q_proj"]})
    assert "sft, dpo.first, evaluate.sft, answers.sft: tried out on a cut-down model in" in caplog.text
    assert store.done(folder) and {path.name for path in folder.iterdir() if path.is_dir()} == {"tokenizer"}, "nothing of it stays"


def begin_with_a_judge(source: Path, root: Path) -> Path:
    """Let the worker make the base of a run that trains a reward model from it."""
    root.mkdir()
    files = Asset(source, digests.asset(root, source, policy.MODEL_FILES).digest, policy.MODEL_FILES)
    start = staged.stage("base", "base", {"base": {"kind": "local"}}, {"model": files})
    judge = staged.stage("reward.own", "reward", {"training": TRAINING, "seed": 0}, {"policy": start})
    job = worker.Job(folder=store.prepare(root, start), machine=CPU, trials=requirements.trials(start, [start, judge], Cluster()))
    worker.run(worker.Job.model_validate_json(job.model_dump_json()))
    return job.folder


def test_a_reward_model_is_tried_out_too(tmp_path: Path, made_base: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, trial.__name__):
        begin_with_a_judge(model(tmp_path / "llama", made_base, "llama", **LLAMA), tmp_path / "a")
    assert "reward.own: tried out on a cut-down model in" in caplog.text
    with pytest.raises(
        UserError, match=r"^reward.own: one step on .*a reward model cannot be made of GraniteForCausalLM: transformers has no"
    ):
        begin_with_a_judge(model(tmp_path / "granite", made_base, "granite", **LLAMA), tmp_path / "b")


def test_the_attention_of_each_row_is_asked_for(tmp_path: Path, made_base: Path):
    shape = {**LLAMA, "head_dim": 16}
    source = model(tmp_path / "model", made_base, "gemma2", **shape)
    written = r"the cluster file's row `generate` \(`infer` where there is none\) says attn_implementation: sdpa \(answers.sft\). Set "
    says = (
        r"^Gemma2ForCausalLM does not have it: {}the cluster file's row `infer` says attn_implementation: sdpa \(evaluate.sft\); " + written
    )
    rows = r"the cluster file's row `train` says attn_implementation: sdpa \(sft, dpo.first\); "
    with pytest.raises(UserError, match=says.format(rows)):
        begin(source, tmp_path / "a", Cluster())
    eager = Machine(attn_implementation="eager")
    with pytest.raises(UserError, match=says.format("")):
        begin(source, tmp_path / "b", Cluster(train=eager))
    begin(source, tmp_path / "c", Cluster(train=eager, infer=eager))  # row `cpu` says sdpa, and nothing there computes attention


def test_layers_to_adapt_are_looked_for_in_the_whole_model(tmp_path: Path, made_base: Path):
    source = model(tmp_path / "model", made_base, "llama", **LLAMA)
    with pytest.raises(UserError, match="LlamaForCausalLM has no layer k_prj"):
        begin(source, tmp_path / "a", Cluster(), lora={"target_modules": ["q_proj", "k_prj"]})
    begin(source, tmp_path / "b", Cluster(), lora={"target_modules": r"model\.layers\.3\.mlp\.up_proj"})  # of which only two are left


def test_what_a_stage_dies_of_is_told_with_the_way_on(tmp_path: Path, made_base: Path):
    """Mixtral's balancing loss, asked of a model that has none: the recipe's word against the model."""
    source = model(tmp_path / "model", made_base, "llama", **LLAMA)
    with pytest.raises(
        UserError, match=r"^sft: one step on a cut-down model.*router_aux_loss_coef: 0.5, but llama has no.*Take the line out"
    ):
        begin(source, tmp_path / "a", Cluster(), router_aux_loss_coef=0.5)


def test_every_kind_of_layer_is_left_and_sizes_fit():
    config = JambaConfig(num_hidden_layers=16)
    small = cut_down.cut(config, cut_down.on_paper(config))
    assert isinstance(small, JambaConfig)
    assert small.num_hidden_layers == 5, "the fifth is the first with attention"
    assert set(small.layers_block_type) == {"mamba", "attention"} and set(small.layers_num_experts) == {1, 4}
    hybrid = BambaConfig(attn_layer_indices=[3, 9], mamba_n_heads=128, mamba_d_head=64)
    small = cut_down.cut(hybrid, cut_down.on_paper(hybrid))
    assert isinstance(small, BambaConfig)
    plain = small.to_dict()
    assert plain["attn_layer_indices"] == [3]
    assert plain["mamba_n_heads"] * plain["mamba_d_head"] == plain["mamba_expand"] * plain["hidden_size"]
    with torch.no_grad():
        cut_down.build(small)(input_ids=torch.arange(8)[None], use_cache=False)


def test_a_model_that_is_another_in_training_is_refused(tmp_path: Path, made_base: Path):
    """PhiMoE's routers choose other experts there than in scoring: its rounds would stop at their first loss, after SFT."""
    shape = {**LLAMA, "num_local_experts": 4, "initializer_range": 0.3}
    source = model(tmp_path / "model", made_base, "phimoe", **shape)
    with pytest.raises(UserError, match=r"^dpo.first: one step on a cut-down.*computes in training what it does not in scoring"):
        begin(source, tmp_path / "a", Cluster())
