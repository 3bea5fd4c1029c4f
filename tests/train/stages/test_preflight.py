"""Preflight: the checks on one process, all complaints at once, and which checks a plan asks for.

Covers: train/commands/preflight, train/forecast/disk, train/launch/preflight, train/weights/requirements.
"""

import json
from pathlib import Path

import pytest

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Cluster, Machine
from rounds.train.engine.graph import Asset
from rounds.train.engine.params import PreflightParams
from rounds.train.engine.policy import MODEL_FILES
from rounds.train.forecast import disk
from rounds.train.launch import preflight
from rounds.train.stages import preflight as stage
from tests import staged

ASKED = {"row": "train", "gpus": 0, "gpu_type": None, "need_bytes": 1000, "paths": [], "asks": []}


def test_a_machine_that_has_what_is_needed_passes(run_stage):
    out, counts = run_stage("preflight", "preflight", ASKED, {})
    found = json.loads((out / "checks.json").read_text())
    assert [entry["check"] for entry in found] == [
        "store",
        "disk",
        "clocks",
        "versions",
        "GPUs",
        "kernels",
        "all-reduce",
        "files",
    ]
    assert not any(entry["wrong"] for entry in found) and "torch" in counts["checks"]["versions"]
    assert not list(out.glob("probe-*"))


def test_everything_that_is_wrong_is_told_at_once(run_stage, shelf):
    asked = {**ASKED, "gpus": 8, "gpu_type": "h100", "need_bytes": 10**18, "paths": ["/nowhere/model"]}
    with pytest.raises(UserError) as told:
        run_stage("preflight", "preflight", asked, {}, Machine(device="cuda"))
    for complaint in ("make room", "torch sees 0 GPUs, expected 8", "does not see /nowhere/model"):
        assert complaint in str(told.value)
    found = json.loads((shelf / "preflight" / "checks.json").read_text())
    assert [entry["check"] for entry in found if entry["wrong"]] == ["disk", "GPUs", "files"]


@pytest.mark.parametrize(("asked", "fits"), [("h100", True), ("nvidia_h100_80gb_hbm3", True), ("H100-80GB", True), ("a100", False)])
def test_a_kind_of_gpu_is_known_by_slurms_name_for_it(monkeypatch, asked, fits):
    monkeypatch.setattr(stage.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(stage.torch.cuda, "get_device_name", lambda n: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(stage.torch.cuda, "mem_get_info", lambda n: (99, 100))
    _, wrong = stage._gpus(PreflightParams.model_validate({**ASKED, "gpus": 1, "gpu_type": asked}), Machine())
    assert (not wrong) == fits and (fits or f"expected {asked}" in wrong[0])


def test_what_a_node_cannot_run_is_told_for_the_stages_that_want_it(run_stage):
    flash = {
        "stages": ["dpo.third"],
        "function": "dpo",
        "machine": {"device": "cpu", "attn_implementation": "flash_attention_2"},
    }
    liger = {"stages": ["sft"], "function": "sft", "machine": {"device": "cpu", "use_liger_kernel": True}}
    with pytest.raises(UserError) as told:
        run_stage("preflight", "kernels", {**ASKED, "asks": [flash, liger]}, {}, Machine(device="cpu"))
    assert "kernels: rank 0 on " in str(told.value)
    assert "dpo.third: attn_implementation: flash_attention_2 needs a GPU" in str(told.value)
    assert "sft: the cluster row says use_liger_kernel: true" in str(told.value)


def config(folder: Path) -> Path:
    """A model folder as far as planning reads it: 64 wide, 2 layers, 1,000 words."""
    folder.mkdir()
    numbers = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1000,
               "num_key_value_heads": 2, "model_type": "llama", "tie_word_embeddings": True}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(numbers))
    return folder


PARAMETERS = 1000 * 64 + 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64) + 64
KNOBS = {"learning_rate": 1e-3, "global_batch_size": 8, "max_length": 64}


def test_a_plan_is_checked_for_the_rows_the_files_and_the_room_that_it_needs(tmp_path: Path):
    model = config(tmp_path / "model")
    base = staged.stage("base", "base", {"base": {"kind": "local"}}, {"model": Asset(model, "digest", MODEL_FILES)})
    sft = staged.stage("sft", "sft", {"training": KNOBS}, {"policy": base})
    machine = Cluster.model_validate({"kind": "slurm", "train": {"slurm": {"gpus": 8, "gpu_type": "h100"}, "save_total_limit": 2}})
    checks = {stage.name: stage for stage in preflight.stages([base, sft], tmp_path / "store", machine)}
    assert set(checks) == {"preflight.cpu", "preflight.train"}
    assert [ask["stages"] for ask in checks["preflight.train"].params.stored()["asks"]] == [["sft"]]
    assert {name: value for name, value in checks["preflight.train"].params.stored().items() if name != "asks"} == {
        "row": "train",
        "gpus": 8,
        "gpu_type": "h100",
        "need_bytes": PARAMETERS * (4 + 3 * (4 + 8)),  # the policy; two checkpoints kept and one on its way
        "paths": [str(model)],
    }


def test_checkpoints_of_stages_that_may_run_at_once_all_need_room(tmp_path: Path):
    base = staged.stage("base", "base", {"base": {"kind": "local"}}, {"model": Asset(config(tmp_path / "model"), "d", MODEL_FILES)})
    rounds = [staged.stage(f"dpo.{n}", "dpo", {"training": {**KNOBS, "learning_rate": n}}, {"policy": base}) for n in (1, 2)]
    gate = staged.stage("gate", "gate", {}, {"current": base, "candidate": rounds[0]})
    later = staged.stage("dpo.3", "dpo", {"training": KNOBS}, {"policy": gate})
    row = {"deepspeed": str(Path(__file__).parents[3] / "recipes/deepspeed/zero3.json"), "precision": "bf16"}
    machine = Cluster.model_validate({"train": {**row, "save_total_limit": 2}})
    one, all_of_them = (disk.needed([base, *rounds, gate, later], tmp_path / "store", machine, lanes) for lanes in (1, None))
    assert (one, all_of_them) == (PARAMETERS * (3 * 2 + 3 * 12), PARAMETERS * (3 * 2 + 2 * 3 * 12))


def test_the_room_for_a_model_that_is_not_at_hand_is_not_guessed(tmp_path: Path):
    base = staged.stage("base", "base", {"base": {"kind": "hub", "id": "nobody/model", "revision": "0" * 40}})
    sft = staged.stage("sft", "sft", {"training": KNOBS}, {"policy": base})
    assert disk.needed([base, sft], tmp_path / "store", Cluster()) is None


def test_a_row_of_single_stages_is_asked_for_as_it_is_and_not_where_it_means_other_nodes(tmp_path: Path):
    training = {**KNOBS, "lora": {"load_in_4bit": True}}
    base = staged.stage("base", "base", {"base": {"kind": "hub", "id": "nobody/model", "revision": "0" * 40}})
    stages = [
        staged.stage(name, "dpo", {"training": training, "seed": number}, {"policy": base})
        for number, name in enumerate(("dpo.first", "dpo.second"))
    ]
    machine = Cluster.model_validate(
        {
            "kind": "slurm",
            "train": {"slurm": {"gpus": 8}},
            "stages": {"dpo.first": {"use_liger_kernel": True}, "dpo.second": {"slurm": {"gpus": 1}}},
        }
    )
    (check,) = preflight.stages(stages, tmp_path, machine)
    (ask,) = check.params.stored()["asks"]
    assert ask["stages"] == ["dpo.first"] and ask["load_in_4bit"] and ask["machine"]["use_liger_kernel"]
    asked = [[ask["stages"] for ask in check.params.stored()["asks"]] for check in preflight.stages((), tmp_path, machine)]
    assert asked == [[], [["row `train`"]], [["row `infer`"]]]
