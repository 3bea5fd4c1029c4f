"""Do the engines run: DeepSpeed, 4 bits, compilation, a kill and what goes on after it, export.

Each trains a small policy through train/training/train.py, as the stages do: arguments from a recipe's section and a cluster row, the
real trainer, checkpoints, and the policy that is left.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu import processes, right, tolerance, trainers
from gpu import rows as random_rows
from gpu.finding import Finding, NotHere, measured, not_here, within

KNOBS = {"learning_rate": 1e-3, "num_train_epochs": 4, "global_batch_size": 4, "max_length": 256}
STEPS = 16
DEEPSPEED = Path(__file__).resolve().parents[2] / "recipes" / "deepspeed"


def _shape(device: str) -> dict[str, Any]:
    return random_rows.SHAPES["14M"] if device == "cuda" else random_rows.IN_SMALL["14M"]


def _start(folder: Path, device: str) -> Path:
    """Write a base policy as stage `base` does: weights, tokenizer, description."""
    from rounds.train.engine import policy

    base = folder / "base"
    if not base.is_dir():
        base.mkdir()
        shape = _shape(device)
        made = trainers.model(shape, seed=1, initializer_range=right.sharp(shape))
        made.save_pretrained(base / "model")
        trainers.tokenizer().save_pretrained(base / "tokenizer")
        policy.write_base(base, "model", None)
    return base


def _train(
    folder: Path, name: str, device: str, lora: dict[str, Any] | None = None, killed_at: int = 0, **row: Any
) -> tuple[list[float], Path]:
    """Train 16 packed rows four times over, and return the losses and the stage's folder. `killed_at` ends this process at that
    step, as a node that loses its power does."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig

    from rounds.train.config.cluster import Machine
    from rounds.train.config.training import Training
    from rounds.train.engine import policy, ranks
    from rounds.train.stages.sft import PackedRows, PackedTrainer
    from rounds.train.training import arguments, train
    from rounds.train.weights import adapters, models

    given = {"device": device, "micro_batch_size": 2, "save_steps": 5, "threads": 1 if device == "cpu" else None}
    machine = Machine.model_validate({**given, **row})
    training = Training.model_validate({**KNOBS, "lora": lora})
    base, out = _start(folder, device), folder / name
    out.mkdir(exist_ok=True)
    ranks.join_alone(machine)
    arguments.prepare(machine, 0)
    start = policy.read(base)
    args = SFTConfig(**arguments.arguments(training, machine, 0, out), max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    trainer = PackedTrainer(
        model=adapters.load_start(start, machine, training.lora, out / "cache"),
        args=args,
        train_dataset=Dataset.from_list(_rows(device)),
        processing_class=models.load_tokenizer(start),
        data_collator=PackedRows(0),
        peft_config=adapters.config(training.lora),
    )

    class Power(TrainerCallback):
        """Goes out."""

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

    trainer.add_callback(Power())
    train.run(trainer, out, base, training, machine)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines], out


def _rows(device: str) -> list[dict[str, Any]]:
    vocabulary, shorten = _shape(device)["vocab_size"], 1 if device == "cuda" else 8
    return trainers.packed(random_rows.conversations(32, 256 // shorten, vocabulary, shorten), 256 // shorten, "bfd")[:16]


def _curves(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def _bound(device: str) -> float:
    """Return how far two curves in fp32 may be apart: each step's loss by theory, and the steps' errors added up."""
    shape = _shape(device)
    return STEPS * tolerance.noise("fp32", shape["num_hidden_layers"], shape["intermediate_size"])


def zero2(device: str, seconds: float) -> Iterator[Finding]:
    """DeepSpeed ZeRO-2 on one rank, its optimizer in the host's memory."""
    yield from _zero(2, device)


def zero3(device: str, seconds: float) -> Iterator[Finding]:
    """DeepSpeed ZeRO-3 on one rank, weights and optimizer in the host's memory."""
    yield from _zero(3, device)


def _zero(stage: int, device: str) -> Iterator[Finding]:
    import tempfile

    what = f"ZeRO-{stage} with offload"
    try:
        import deepspeed
    except ImportError as error:
        raise NotHere(f"{what}: {error}") from error
    if device == "cpu":  # its sums over the processes of a host, which one rank needs none of and which takes a minute to compile
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    file = json.loads((DEEPSPEED / f"zero{stage}.json").read_text())
    zero = file["zero_optimization"] | {"offload_optimizer": {"device": "cpu"}}
    if stage == 3:
        zero |= {"offload_param": {"device": "cpu"}}
    # DeepSpeed compiles its own Adam for the host at first use, which takes a minute on a quiet core: on a CPU in small, torch's.
    own = {} if device == "cuda" else {"zero_force_ds_cpu_optimizer": False}
    folder = Path(tempfile.mkdtemp())
    plain, _ = _train(folder, "plain", device)
    found, out = _train(folder, "zero", device, deepspeed={**file, "zero_optimization": zero, **own})
    yield within(
        f"{what}: losses of {STEPS} steps - without",
        _curves(plain, found),
        _bound(device),
        "nats",
        f"from {found[0]:.4f} to {found[-1]:.4f}",
    )
    yield within(f"{what}: weights left, not finite", _not_finite(out / "model"), 0)


def _not_finite(folder: Path) -> int:
    from safetensors.torch import load_file

    weights = [tensor for file in folder.glob("*.safetensors") for tensor in load_file(file).values()]
    assert weights, f"{folder} holds no weights"
    return sum(int((~tensor.isfinite()).sum()) for tensor in weights)


def qlora(device: str, seconds: float) -> Iterator[Finding]:
    """An adapter on weights in 4 bits, and the policy that it leaves, merged and opened."""
    import tempfile

    from rounds.train.config.cluster import Machine
    from rounds.train.weights import adapters

    reason = adapters.four_bit_obstacle(Machine(device="cuda" if device == "cuda" else "cpu"))
    if reason:
        raise NotHere(reason.partition(". Install")[0])
    folder = Path(tempfile.mkdtemp())
    losses, out = _train(folder, "qlora", device, {"r": 8, "load_in_4bit": True}, precision="bf16")
    yield within("QLoRA: last loss / first", losses[-1] / losses[0], 1, reason=f"from {losses[0]:.4f} to {losses[-1]:.4f}")
    yield from _opened(out, folder, "QLoRA")


def export(device: str, seconds: float) -> Iterator[Finding]:
    """LoRA's policy merged, written as an ordinary folder, and opened again."""
    import tempfile

    folder = Path(tempfile.mkdtemp())
    losses, out = _train(folder, "lora", device, {"r": 8})
    yield within("LoRA: last loss / first", losses[-1] / losses[0], 1, reason=f"from {losses[0]:.4f} to {losses[-1]:.4f}")
    yield from _opened(out, folder, "LoRA")


def _opened(out: Path, folder: Path, name: str) -> Iterator[Finding]:
    """Merge and save as stage `export` does, check the folder's headers, load it as anyone would, and compare the logits."""
    import torch
    from transformers import AutoModelForCausalLM

    from rounds.train.config.cluster import Machine
    from rounds.train.engine import policy
    from rounds.train.weights import models

    described = policy.read(out)
    merged: Any = models.load_model(described, Machine(device="cpu"))
    models.save_model(merged, models.load_tokenizer(described), folder / "export")
    models.open_folder(str(folder / "export"))
    again = AutoModelForCausalLM.from_pretrained(folder / "export", dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        found = float((merged(input_ids=ids).logits - again(input_ids=ids).logits).abs().max())
        base = models.load_model(policy.read(folder / "base"), Machine(device="cpu"))
        moved = float((merged(input_ids=ids).logits - base(input_ids=ids).logits).abs().max())
    yield within(f"{name}, exported and opened: logits - before", found, 0)
    yield measured(f"{name}: logits moved from the base's by", moved)


def resume(device: str, seconds: float) -> Iterator[Finding]:
    """A process that is killed outright after a checkpoint; another goes on from it, and ends as if nothing had happened."""
    import tempfile

    folder = Path(tempfile.mkdtemp())
    _start(folder, device)
    for name, killed_at in (("whole", 0), ("killed", 8), ("killed", 0)):
        # In processes of their own, whatever the device: a kill is one, and a card is first used in the one that trains.
        ended = processes.run_alone(_train_in, (str(folder), name, device, killed_at), device, seconds, leads=False)
        wanted = -signal.SIGKILL if killed_at else 0
        if ended != wanted and (name, killed_at) == ("whole", 0):
            # The same in this process, so that what is missing here is told as what it is. Nothing else follows.
            _train(folder, "again", device)
        if ended != wanted:
            raise RuntimeError(f"training ({name}, killed at step {killed_at}) ended with {ended}, not {wanted}")
        if killed_at:
            found = [path.parent.name for path in (folder / "killed" / "checkpoints").glob("*/rounds-complete.json")]
            yield measured("whole checkpoints that a kill at step 8 leaves", len(found), "", ", ".join(found))
    whole, resumed = (
        [json.loads(line)["loss"] for line in (folder / name / "metrics.jsonl").read_text().splitlines()] for name in ("whole", "killed")
    )
    # On a card sums of gradients may be added in another order each time.
    bound = 0.0 if device == "cpu" else _bound(device)
    yield within(f"resumed at step 5: losses of {len(whole)} steps - undisturbed", _curves(whole, resumed), bound, "nats")
    same = (folder / "whole/model/model.safetensors").read_bytes() == (folder / "killed/model/model.safetensors").read_bytes()
    yield measured("weights that differ in a bit", 0 if same else 1, "", "the files are equal" if same else "the files differ")


def _train_in(folder: str, name: str, device: str, killed_at: int) -> None:
    _train(Path(folder), name, device, killed_at=killed_at)


def compiled(device: str, seconds: float) -> Iterator[Finding]:
    """torch.compile, where a recipe or a cluster file can ask for it."""
    from rounds.train.config.cluster import Machine
    from rounds.train.config.training import Training

    names = [name for section in (Machine, Training) for name in section.model_fields if "compile" in name]
    if not names:
        yield not_here("torch.compile", "no field of a recipe or a cluster file asks for it")
        return
    import tempfile

    plain, found = (_train(Path(tempfile.mkdtemp()), "run", device, None, 0, **row)[0] for row in ({}, {names[0]: True}))
    yield within(
        f"torch.compile: losses of {STEPS} steps - without",
        _curves(plain, found),
        _bound(device),
        "nats",
        f"Python {sys.version_info.major}.{sys.version_info.minor}",
    )
