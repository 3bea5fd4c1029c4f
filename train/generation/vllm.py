"""Engine `vllm`: a worker of its own under the interpreter `engine_python` of the cluster row, fed and read by files.

vLLM cannot live beside this project: it pins an older transformers. The worker (`vllm_worker.py`) knows nothing of ours; it takes
token ids and gives token ids. It ends with this process. One engine a process: a second one would find memory that the first keeps.
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from rounds.data_prep.errors import UserError
from rounds.data_prep.whole import whole
from rounds.train.config.cluster import Machine
from rounds.train.config.decoding import Decoding
from rounds.train.engine.policy import MODEL_FILES, Policy
from rounds.train.generation.engine import Ask, Reply, Subject, Write
from rounds.train.weights import models, requirements

WORKER = Path(__file__).with_name("vllm_worker.py")
_POLL_SECONDS = 0.05
_OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_OURS_BEGIN = ("MASTER_", "TORCHELASTIC_", "SLURM_", "PMI_", "OMPI_")
"""Variables by which the worker would take itself for a rank of something, or find this project's packages."""


@contextmanager
def opened(subject: Subject) -> Iterator[Write]:
    """Start a worker on the policy as a plain model folder, and end it afterwards."""
    python = subject.machine.engine_python
    if reason := requirements.vllm_obstacle(subject.machine):
        raise UserError(reason)
    model = _folder(subject)
    with tempfile.TemporaryDirectory(prefix="vllm-", dir=subject.folder) as name:
        room = Path(name)
        _write(room / "engine.json", {"model": str(model), "dtype": _dtype(subject.machine), "max_model_len": subject.window,
                                      "max_num_seqs": subject.machine.eval_batch_size, "ends": subject.ends,
                                      "enforce_eager": models.device_of(subject.machine) == "cpu"})  # fmt: skip
        worker = subprocess.Popen([str(python), "-I", str(WORKER), str(room)], env=environment(), cwd=room)
        try:
            yield lambda asks, decoding: _ask(worker, room, asks, decoding)
        finally:
            worker.kill()
            worker.wait()


def environment() -> dict[str, str]:
    """Return this process's variables without those that are about its own ranks and packages."""
    return {name: value for name, value in os.environ.items() if name not in _OURS and not name.startswith(_OURS_BEGIN)}


def _ask(worker: subprocess.Popen, room: Path, asks: Sequence[Ask], decoding: Decoding) -> list[Reply]:
    number = sum(1 for _ in room.glob("asked-*.json"))
    _write(room / f"asked-{number:06}.json", {"asks": [asdict(ask) for ask in asks], **decoding.model_dump()})
    answer = room / f"answered-{number:06}.json"
    while not answer.is_file():
        if (code := worker.poll()) is not None:
            raise UserError(f"the vLLM worker ended with exit code {code} before it answered; what it said stands above in this log")
        time.sleep(_POLL_SECONDS)
    return [Reply(**row) for row in json.loads(answer.read_text(encoding="utf-8"))]


def _folder(subject: Subject) -> Path:
    """Return the policy as a plain model folder: where it is one, itself; else merged and written, once for all processes."""
    policy: Policy = subject.policy
    if not policy.adapters:
        here = Path(policy.weights)
        return here if here.is_dir() else Path(snapshot_download(policy.weights, revision=policy.revision, allow_patterns=[*MODEL_FILES]))
    target = subject.folder / "model"
    if not target.is_dir():
        model = models.load_model(policy, subject.machine)
        if subject.machine.precision == "bf16":
            models.cast(model, torch.bfloat16)
        try:
            with whole(target, many=True) as partial:
                model.save_pretrained(partial)
        except OSError:  # another process was first
            if not target.is_dir():
                raise
    return target


def _dtype(machine: Machine) -> str:
    return "bfloat16" if machine.precision == "bf16" else "float32"


def _write(path: Path, plain: object) -> None:
    with whole(path) as partial:
        partial.write_text(json.dumps(plain), encoding="utf-8")
