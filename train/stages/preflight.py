"""Stage `preflight`: is what a run needs there, on every node that it will run on? Minutes here save hours in the queue.

All ranks of a cluster row run it together, as they would train. Out: `checks.json`, one entry per check with what was found.
It fails, saying everything that is wrong at once, and what was submitted behind it is then not started.
"""

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.filesize import decimal
from torch import distributed

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Machine
from rounds.train.engine import ranks, store
from rounds.train.engine.params import PreflightParams, Requirement
from rounds.train.engine.records import CHECKS, Counts
from rounds.train.weights import requirements

MAX_SKEW_SECONDS = 5.0
"""More than any clock that is kept by NTP or PTP is off; claims and progress in the store are told apart by time."""
_SEEN_WITHIN_SECONDS = 60.0
"""NFS may answer from its attribute cache for up to 60 s (acregmax, acdirmax in nfs(5))."""
_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
_ROUNDS = 5
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "datasets", "safetensors", "tokenizers")
_FREE_SHARE = 0.9
"""Of a GPU's memory: less is in use by somebody else's process."""


def run(params: PreflightParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Make every check on every rank, and fail with all that is wrong."""
    device = "cuda" if machine.device != "cpu" and torch.cuda.is_available() else "cpu"
    checks: list[tuple[str, Callable[[], tuple[str, list[str]]]]] = [
        ("store", lambda: _store(out)),
        ("disk", lambda: _disk(out, params.need_bytes)),
        ("clocks", _clocks),
        ("versions", _versions),
        ("GPUs", lambda: _gpus(params, machine)),
        ("kernels", lambda: _kernels(params.asks)),
        ("all-reduce", lambda: _all_reduce(device)),
        ("files", lambda: _files(params.paths)),
    ]
    found, wrong = [], []
    for name, check in checks:
        says, complaints = check()
        found.append({"check": name, "found": says, "wrong": complaints})
        wrong += [f"{name}: {complaint}" for complaint in complaints]
    if ranks.rank() == 0:
        store.write_json(out / CHECKS, found)
    if wrong:
        raise UserError(f"{len(wrong)} checks of row `{params.row}` failed. " + "; ".join(wrong))
    return {"checks": {entry["check"]: entry["found"] for entry in found}}


def _gather(value: Any) -> dict[str, Any]:
    """Return every rank's value, by `rank N on NODE`; the same on all ranks, so that all come to the same verdict."""
    mine = (f"rank {ranks.rank()} on {ranks.node()}", value)
    if ranks.world_size() == 1:
        return dict([mine])
    everyone: list[Any] = [None] * ranks.world_size()
    distributed.all_gather_object(everyone, mine)
    return dict(everyone)


def _store(out: Path) -> tuple[str, list[str]]:
    """Each rank writes a file, and each must see what all wrote."""
    token = next(iter(_gather(os.urandom(8).hex()).values()))
    mine = out / f"probe-{ranks.rank()}"
    began = time.monotonic()
    try:
        with mine.open("w") as file:
            file.write(token)
            file.flush()
            os.fsync(file.fileno())
        trouble = None
    except OSError as error:
        trouble = f"cannot write {mine}: {error.strerror}"
    wrote = _gather(trouble)
    wrong = [f"{who}: {said}" for who, said in wrote.items() if said]
    if not wrong:
        unseen = _gather(_unseen(out, token))
        wrong = [f"{who} does not see what these ranks wrote: {numbers}" for who, numbers in unseen.items() if numbers]
    seconds = time.monotonic() - began
    ranks.barrier()
    mine.unlink(missing_ok=True)
    return f"{ranks.world_size()} ranks wrote to {out.parent} and saw each other's files after {seconds:.2f} s", wrong


def _unseen(out: Path, token: str) -> list[int]:
    deadline = time.monotonic() + _SEEN_WITHIN_SECONDS
    while True:
        missing = [rank for rank in range(ranks.world_size()) if not _holds(out / f"probe-{rank}", token)]
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.2)


def _holds(path: Path, token: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == token
    except OSError:
        return False


def _disk(out: Path, need: int | None) -> tuple[str, list[str]]:
    free = shutil.disk_usage(out).free
    says = f"{decimal(free)} free, the plan writes {'an unknown amount' if need is None else f'about {decimal(need)}'}"
    return says, [f"{says}; make room, or name another store"] if need is not None and need > free else []


def _clocks() -> tuple[str, list[str]]:
    """Compare clocks right after a barrier: what is left of its own spread is milliseconds."""
    ranks.barrier()
    times = _gather(time.time())
    first = next(iter(times.values()))
    off = {who: at - first for who, at in times.items()}
    worst = max(off, key=lambda who: abs(off[who]))
    wrong = [f"the clock of {who} is {seconds:+.1f} s off rank 0's" for who, seconds in off.items() if abs(seconds) > MAX_SKEW_SECONDS]
    return f"at most {abs(off[worst]):.3f} s apart", wrong


def _versions() -> tuple[str, list[str]]:
    mine = {name: importlib.metadata.version(name) for name in _PACKAGES}
    mine |= {"python": platform.python_version(), "cuda": str(torch.version.cuda), "code": _code()}
    everyone = _gather(mine)
    first_name, first = next(iter(everyone.items()))
    wrong = [
        f"{who} has {name} {other[name]}, {first_name} has {first[name]}"
        for who, other in everyone.items()
        for name in first
        if other[name] != first[name]
    ]
    return ", ".join(f"{name} {first[name]}" for name in ("python", "torch", "transformers", "trl", "deepspeed", "code")), wrong


def _code() -> str:
    """Digest Rounds itself as this rank would import it."""
    root = Path(__file__).resolve().parents[1]
    text = b"".join(path.read_bytes() for path in sorted(root.rglob("*.py")))
    return hashlib.sha256(text).hexdigest()[:12]


def _gpus(asked: PreflightParams, machine: Machine) -> tuple[str, list[str]]:
    """Each rank looks at all GPUs of its node, also those that other ranks will use."""
    if machine.device == "cpu":
        return "none: the row says device: cpu", []
    seen = [
        {"name": torch.cuda.get_device_name(n), "free": torch.cuda.mem_get_info(n)[0] / torch.cuda.mem_get_info(n)[1]}
        for n in range(torch.cuda.device_count())
    ]
    wrong = []
    for who, gpus in _gather(seen).items():
        if len(gpus) < asked.gpus or (machine.device == "cuda" and not gpus):
            wrong.append(f"{who}: torch sees {len(gpus)} GPUs, expected {max(1, asked.gpus)}")
        wanted = _plain(asked.gpu_type or "")
        wrong += [
            f"{who}: GPU {n} is a {g['name']}, expected {asked.gpu_type}" for n, g in enumerate(gpus) if wanted not in _plain(g["name"])
        ]
        wrong += [
            f"{who}: {1 - g['free']:.0%} of GPU {n}'s memory is in use by something else"
            for n, g in enumerate(gpus)
            if g["free"] < _FREE_SHARE
        ]
    return f"{len(seen)} x {seen[0]['name']} on each node" if seen else "none", wrong


def _plain(name: str) -> str:
    """Spell a kind of GPU as both would: where SLURM asks NVML itself it says `nvidia_h100_80gb_hbm3`, torch `NVIDIA H100 80GB HBM3`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _kernels(asks: tuple[Requirement, ...]) -> tuple[str, list[str]]:
    """Attention, Liger and bitsandbytes must be on every node, or training fails when its data are long made."""
    mine = [f"{', '.join(ask.stages)}: {reason}" for ask in asks for reason in requirements.unusable(ask)]
    used = sorted(
        {ask.machine.attn_implementation for ask in asks}
        | {"liger" for ask in asks if ask.machine.use_liger_kernel}
        | {"bitsandbytes" for ask in asks if ask.load_in_4bit}
    )
    told: dict[str, list[str]] = {}
    for who, lacks in _gather(mine).items():
        for reason in lacks:
            told.setdefault(reason, []).append(who)
    wrong = [f"{who[0]}{f' and {len(who) - 1} more' if len(who) > 1 else ''}: {reason}" for reason, who in told.items()]
    return ", ".join(used) or "none needed", wrong


def _all_reduce(device: str) -> tuple[str, list[str]]:
    """Sum a large tensor over all ranks; the sum must be right, and the bandwidth is told as nccl-tests' `busbw`."""
    if ranks.world_size() == 1:
        return "one process: nothing to reduce", []
    world, count = ranks.world_size(), _BYTES[device] // 4
    data = torch.full((count,), float(ranks.rank() + 1), device=device)
    right = world * (world + 1) / 2
    distributed.all_reduce(data)  # the first call also makes the connections
    wrong = [] if bool((data == right).all()) else [f"the sum over ranks came out as {data[0].item()}, expected {right}"]
    _settle(device)
    began = time.monotonic()
    for _ in range(_ROUNDS):
        distributed.all_reduce(data)
    _settle(device)
    seconds = (time.monotonic() - began) / _ROUNDS
    bandwidth = 2 * (world - 1) / world * _BYTES[device] / seconds
    slowest = min(_gather(bandwidth).values())
    everyone = _gather(wrong)
    return (
        f"{_BYTES[device] >> 20} MiB over {world} ranks in {seconds * 1e3:.1f} ms: {slowest / 1e9:.2f} GB/s bus bandwidth",
        [f"{who}: {text}" for who, texts in everyone.items() for text in texts],
    )


def _settle(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _files(paths: tuple[str, ...]) -> tuple[str, list[str]]:
    missing = _gather([path for path in paths if not Path(path).exists()])
    wrong = [f"{who} does not see {path}" for who, lost in missing.items() for path in lost]
    return f"{len(paths)} files and folders of the recipe are there", wrong
