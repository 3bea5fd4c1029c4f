"""The same recipe on one process and on two, under DDP, ZeRO-2 and ZeRO-3, stopped and resumed: one curve, one policy.

Real ranks over gloo, started by torchrun once for all cases (`ranks_driver`); the numbers are fp32, but for `in_bf16`.

Covers: train/stages/reference.
"""

import copy
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from rounds.data_prep import records
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Conversation, Pair
from rounds.train.config.cluster import Machine
from rounds.train.config.training import Training
from rounds.train.engine import worker
from rounds.train.training import checkpoints
from tests import staged

REPOSITORY = Path(__file__).resolve().parents[3]
ZERO = {n: json.loads((REPOSITORY / "recipes" / "deepspeed" / f"zero{n}.json").read_text()) for n in (2, 3)}
ZERO[3]["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # else a model this small stays whole on each rank
LORA = {"r": 4, "lora_alpha": 8}
DPO = {"beta": 0.1, "loss_type": ["sigmoid"]}
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-5, 1e-5
"""Measured: 1e-6 and 6e-7 at most (with offload, whose Adam is DeepSpeed's own, 3e-6 and 2e-6), after 4 to 12 steps."""
BF16_TOLERANCE = 2e-3
"""Nats between the curves of bf16 in ZeRO-3's shards and of fp32. Measured: 4.4e-4 (SFT), 1.6e-4 (DPO)."""

pytestmark = pytest.mark.xdist_group("ranks")


Wanted = tuple[str, str, dict | None]
"""A function, a row of `ROWS`, and LoRA or none."""


def name_of(function: str, row: str, lora: dict | None) -> str:
    return f"{function} {row}{' lora' if lora else ''}"


def offloaded(stage: int) -> dict:
    zero = copy.deepcopy(ZERO[stage])
    zero["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    if stage == 3:
        zero["zero_optimization"]["offload_param"] = {"device": "cpu"}
    return zero


def released() -> dict:
    """ZeRO-3 that lets go of each layer's weights after its forward pass, as it does with a model that is large."""
    zero = copy.deepcopy(ZERO[3])
    zero["zero_optimization"] |= {
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
    }
    return zero


ROWS: dict[str, dict] = {
    "ddp": {},
    "zero0": {"deepspeed": {"zero_optimization": {"stage": 0}}},
    "zero2": {"deepspeed": ZERO[2]},
    "zero3": {"deepspeed": ZERO[3]},
    "zero3 recomputed": {"deepspeed": released(), "activation_checkpointing": True},
    "zero2 offload": {"deepspeed": offloaded(2)},
    "zero3 offload": {"deepspeed": offloaded(3)},
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, made_base: Path, conversations: list[Conversation], pairs: list[Pair]) -> Path:
    """The stages before training: 24 packed rows, and 16 scored pairs."""
    root = tmp_path_factory.mktemp("ranks")
    shutil.copytree(made_base, root / "base")
    for name, rows in (("conversations", conversations), ("data", pairs)):
        (root / name).mkdir()
        records.write_records(root / name / "records.parquet", rows, records.kind_of(rows[0]))
    made: list[tuple[str, str, dict, dict]] = [
        ("pack", "rows", {"max_length": 96}, {"tokenizer": "base", "data": "conversations"}),
        ("tokenize", "pairs", {"max_length": 96}, {"tokenizer": "base", "data": "data"}),
        ("reference", "reference", {}, {"policy": "base", "pairs": "pairs"}),
    ]
    for function, name, params, inputs in made:
        (root / name).mkdir()
        given = {key: root / folder for key, folder in inputs.items()}
        staged.run(function, params, given, root / name, Machine(device="cpu", threads=1))
    return root


def case(shelf: Path, function: str, name: str, row: dict[str, Any], lora: dict | None = None, epochs: float = 1) -> dict:
    knobs = {"learning_rate": 5e-3 if function == "sft" else 1e-3, "num_train_epochs": epochs, "global_batch_size": 4,
             "max_length": 96, "lora": lora, "optim": "adamw_torch" if function == "sft" else "rmsprop"}  # fmt: skip
    params: dict[str, Any] = {"training": Training.model_validate(knobs).model_dump(mode="json"), "seed": 5}
    if function == "dpo":
        params |= {"dpo": DPO, "reference_is_start": True}
    inputs = ["rows"] if function == "sft" else ["pairs", "reference"]
    return {"function": function, "params": params, "out": str(shelf / name),
            "inputs": {"policy": str(shelf / "base"), **{i: str(shelf / i) for i in inputs}},
            "row": {"device": "cpu", "threads": 1, "save_total_limit": 9, **row}}  # fmt: skip


def start(cases: list[dict], folder: Path, processes: int = 2) -> str:
    """Run cases as the ranks of one torchrun; returns what they printed."""
    (folder / "cases.json").write_text(json.dumps(cases))
    return torchrun("tests.train.engine.ranks_driver", folder / "cases.json", processes)


def torchrun(module: str, argument: Path, processes: int = 2) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={processes}",
               f"--master-port={port}", "-m", module, str(argument)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alone(made: dict) -> Path:
    """Run a case in this process."""
    out = Path(made["out"])
    out.mkdir()
    inputs = {name: Path(path) for name, path in made["inputs"].items()}
    staged.run(made["function"], made["params"], inputs, out, Machine.model_validate(made["row"]))
    return out


def curve(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same(one: Path, other: Path, loss: float = LOSS_TOLERANCE, weight: float = WEIGHT_TOLERANCE) -> None:
    """Compare the curves, and the policies, each of which must be one folder in one piece."""
    assert curve(one) == pytest.approx(curve(other), abs=loss, rel=0), other.name
    kind = "adapter/adapter_model" if (one / "adapter").is_dir() else "model/model"
    a, b = (load_file(folder / f"{kind}.safetensors") for folder in (one, other))
    assert a.keys() == b.keys(), other.name
    for name, value in a.items():
        assert (value - b[name]).abs().max() <= weight, f"{other.name}: {name}"


QUICK = [
    ("sft", "ddp", None),
    ("dpo", "ddp", None),
    ("sft", "zero0", None),
    ("sft", "zero2", None),
    ("sft", "zero3", None),
    ("dpo", "zero2", None),
    ("dpo", "zero3 recomputed", LORA),
]
CUT: list[Wanted] = [("sft", "zero3", None), ("dpo", "zero2", None)]
ALL = [(function, row, lora) for function in ("sft", "dpo") for row in ROWS for lora in (None, LORA)]


def sharded(shelf: Path, wanted: list[Wanted]) -> list[dict]:
    """Return each wanted training as two ranks with micro-batch 1."""
    return [
        case(shelf, function, name_of(function, row, lora), {"processes": 2, "micro_batch_size": 1, **ROWS[row]}, lora)
        for function, row, lora in wanted
    ]


def assert_as_one_process(shelf: Path, wanted: list[Wanted]) -> None:
    """Compare each with one process with micro-batch 4."""
    for function, row, lora in wanted:
        one = name_of(function, "one", lora)
        if not (shelf / one).exists():
            alone(case(shelf, function, one, {"micro_batch_size": 4}, lora))
        assert_same(shelf / one, shelf / name_of(function, row, lora))


def interrupted(shelf: Path, wanted: list[Wanted]) -> list[dict]:
    """Return each wanted training twice: undisturbed, and cut in its second epoch with the next checkpoint half written."""
    cases = []
    for function, row, lora in wanted:
        setting = {"processes": 2, "micro_batch_size": 1, "save_steps": 2, **ROWS[row]}
        whole = case(shelf, function, f"{name_of(function, row, lora)} twice", setting, lora, epochs=2)
        cut = {"out": f"{whole['out']} cut", "of": whole["out"], "cut_to": 8 if function == "sft" else 6}
        cases += [whole, {**whole, **cut}]
    return cases


def assert_resumed_without_a_trace(cases: list[dict]) -> None:
    for whole, cut in zip(cases[::2], cases[1::2], strict=True):
        counts = json.loads((Path(cut["out"]) / "counts.json").read_text())
        assert counts["resumed_from"] == f"checkpoint-{cut['cut_to']}"
        assert_same(Path(whole["out"]), Path(cut["out"]), 0, 0)


def scored(shelf: Path, row: str) -> dict:
    """Score the pairs as two ranks, in batches of one pair."""
    setting = {"device": "cpu", "threads": 1, "processes": 2, "eval_batch_size": 2, **ROWS[row]}
    inputs = {"policy": str(shelf / "base"), "pairs": str(shelf / "pairs")}
    return {
        "function": "reference",
        "params": {},
        "inputs": inputs,
        "row": setting,
        "out": str(shelf / f"scored {row}"),
    }


def assert_scored_alike(shelf: Path, row: str) -> None:
    one, two = (pq.read_table(shelf / name / "logps.parquet").to_pydict() for name in ("reference", f"scored {row}"))
    assert one["id"] == two["id"]
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        assert two[name] == pytest.approx(one[name], abs=1e-4), row


def from_an_adapter(shelf: Path) -> list[dict]:
    """Train an adapter, score the pairs with it, and return a round from there: in ZeRO-3's shards, and as one process."""
    adapter = alone(case(shelf, "sft", "adapter", {"micro_batch_size": 4}, LORA))
    reference = {"function": "reference", "params": {}, "out": str(shelf / "scored adapter"), "row": {"device": "cpu", "threads": 1},
                 "inputs": {"policy": str(adapter), "pairs": str(shelf / "pairs")}}  # fmt: skip
    inputs = {"policy": str(adapter), "pairs": str(shelf / "pairs"), "reference": str(alone(reference))}
    return [{**case(shelf, "dpo", name, row), "inputs": inputs}
            for name, row in (("from adapter zero3", {"processes": 2, "micro_batch_size": 1, **ROWS["zero3"]}),
                              ("from adapter one", {"micro_batch_size": 4}))]  # fmt: skip


def with_named_reference(shelf: Path) -> list[dict]:
    """Return rounds whose reference is named, though it is the start: the stored numbers are checked by scoring some again. The last
    is given numbers of another policy."""
    other = shelf / "another reference"
    shutil.copytree(shelf / "reference", other)
    table = pq.read_table(other / "logps.parquet")
    moved = pc.call_function("add", [table["ref_rejected_logps"], pa.scalar(1.0, pa.float32())])
    pq.write_table(
        table.set_column(table.schema.get_field_index("ref_rejected_logps"), "ref_rejected_logps", moved),
        other / "logps.parquet",
    )
    cases = []
    for reference, rows in ((shelf / "reference", ("zero3 offload", "ddp")), (other, ("zero3",))):
        for row in rows:
            setting = {"processes": 2, "micro_batch_size": 1, **ROWS[row]}
            made = case(shelf, "dpo", f"named {reference.name} {row}", setting)
            made["params"] |= {"reference_is_start": False}
            cases.append({**made, "inputs": {**made["inputs"], "reference": str(reference), "reference_policy": str(shelf / "base")}})
    return cases


def assert_named_references_are_checked(shelf: Path, cases: list[dict]) -> None:
    for right in cases[:2]:
        assert_same(shelf / "dpo one", Path(right["out"]))
    assert "the stored numbers are not that policy's" in (Path(cases[2]["out"]) / "ended.txt").read_text()


def in_bf16(shelf: Path) -> list[dict]:
    """Return what runs on GPUs of a large model: bf16 weights in ZeRO-3's shards, recomputed; SFT, then a reference and rounds on it."""
    setting = {"processes": 2, "micro_batch_size": 1, "precision": "bf16", **ROWS["zero3 recomputed"]}
    reference = {**scored(shelf, "zero3"), "out": str(shelf / "scored bf16")}
    reference["row"] = {**reference["row"], "precision": "bf16"}
    rounds = [case(shelf, "dpo", name_of("dpo", "bf16", lora), setting, lora) for lora in (None, LORA)]
    for made in rounds:
        made["inputs"] |= {"reference": reference["out"]}
    return [case(shelf, "sft", "sft bf16", setting), reference, *rounds]


def assert_bf16_follows_fp32(shelf: Path) -> None:
    for function, lora in (("sft", None), ("dpo", None), ("dpo", LORA)):
        found, exact = (curve(shelf / name_of(function, row, lora)) for row in ("bf16", "one"))
        assert found == pytest.approx(exact, abs=BF16_TOLERANCE, rel=0), (function, lora)
        assert function == "sft" or found[0] == pytest.approx(math.log(2), abs=1e-4)


def test_two_ranks_train_as_one_process_does_and_resume_without_a_trace(shelf: Path):
    cut = interrupted(shelf, CUT)
    adapted, alike = from_an_adapter(shelf)
    named = with_named_reference(shelf)
    start(
        [
            *named,
            adapted,
            *(scored(shelf, row) for row in ("ddp", "zero3")),
            *sharded(shelf, QUICK),
            *cut,
            *in_bf16(shelf),
        ],
        shelf,
    )
    for row in ("ddp", "zero3"):
        assert_scored_alike(shelf, row)
    assert_same(alone(alike), Path(adapted["out"]))
    assert_as_one_process(shelf, QUICK)
    assert_bf16_follows_fp32(shelf)
    assert_named_references_are_checked(shelf, named)
    assert_resumed_without_a_trace(cut)


@pytest.mark.slow
def test_zero_2_goes_on_with_another_number_of_ranks(shelf: Path):
    """Through DeepSpeed's universal checkpoint; the curve is that of two ranks throughout."""
    setting = {"processes": 2, "micro_batch_size": 1, "save_steps": 2, **ROWS["zero2"]}
    two = case(shelf, "sft", "by two", setting, epochs=2)
    one = {
        **case(shelf, "sft", "by two then one", {**setting, "processes": 1}, epochs=2),
        "of": two["out"],
        "cut_to": 8,
    }
    start([two], shelf)
    start([one], shelf, processes=1)
    assert_same(Path(two["out"]), Path(one["out"]))


@pytest.mark.slow
def test_three_ranks_resume_without_a_trace(shelf: Path):
    """Of two ranks the order of a sum cannot matter; of three it can."""
    setting = {"processes": 3, "micro_batch_size": 1, "save_steps": 2}
    cases = []
    for function in ("sft", "dpo"):
        whole = case(shelf, function, f"{function} by three", setting, epochs=2)
        whole["params"]["training"]["global_batch_size"] = 6
        cases += [whole, {**whole, "out": f"{whole['out']} cut", "of": whole["out"], "cut_to": 4}]
    start(cases, shelf, processes=3)
    assert_resumed_without_a_trace(cases)


@pytest.mark.parametrize(
    ("wrote", "here", "says"),
    [
        ({"world_size": 8, "deepspeed": True, "zero_stage": 3}, {"processes": 4, "deepspeed": ZERO[3]},
         "8 processes with DeepSpeed ZeRO-3, and this cluster file says 4 processes with DeepSpeed ZeRO-3"),
        ({"world_size": 8, "deepspeed": True, "zero_stage": 2}, {"processes": 8, "deepspeed": ZERO[3]}, "DeepSpeed ZeRO-2, and"),
        ({"world_size": 8, "deepspeed": True, "zero_stage": 2}, {"processes": 8}, "says 8 processes with no DeepSpeed"),
    ],
)  # fmt: skip
def test_shards_that_other_ranks_cannot_read_exactly_are_refused(tmp_path: Path, wrote: dict, here: dict, says: str):
    checkpoint = tmp_path / "checkpoints" / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    (checkpoint / checkpoints.COMPLETE).write_text(json.dumps({"step": 4, **wrote}))
    with pytest.raises(UserError, match=says):
        checkpoints.fit_shards(None, checkpoint, Machine.model_validate(here))  # type: ignore[arg-type]


@pytest.mark.slow
def test_every_way_to_shard_trains_as_one_process_does_and_resumes_without_a_trace(shelf: Path):
    rest = [wanted for wanted in ALL if wanted not in QUICK]
    cut = interrupted(shelf, [wanted for wanted in ALL if "offload" not in wanted[1] and wanted not in CUT])
    start([*sharded(shelf, rest), *cut], shelf)
    assert_as_one_process(shelf, rest)
    assert_resumed_without_a_trace(cut)


def test_a_rank_that_is_late_still_finds_what_rank_0_tidies_away(undisturbed: Path, tmp_path: Path):
    store = shutil.copytree(undisturbed, tmp_path / "store")
    stage = next(store.glob("reference-*"))
    before = json.loads((stage / "done.json").read_text())
    (stage / "done.json").unlink()
    (stage / "logps.parquet").unlink()
    job = worker.Job(folder=stage, machine=Machine(device="cpu", threads=1, processes=2))
    (tmp_path / "job.json").write_text(job.model_dump_json())
    torchrun("tests.train.engine.late_rank", tmp_path / "job.json")
    after = json.loads((stage / "done.json").read_text())
    assert not (stage / "cache").exists() and after["counts"]["mean_chosen"] == pytest.approx(before["counts"]["mean_chosen"])
