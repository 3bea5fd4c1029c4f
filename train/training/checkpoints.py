"""Which checkpoint a stage goes on from: the newest that was written to its end, read by the ranks there are."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from transformers import Trainer

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Machine
from rounds.train.engine import ranks, store
from rounds.train.engine.digests import file_digest

logger = logging.getLogger(__name__)


COMPLETE = "rounds-complete.json"
READ_BACK = 1 << 30
"""Bytes of a checkpoint up to which all of it is read again, when it is written and when it is gone on from: a second or two. Of a
larger one, and of one that several nodes wrote, only the sizes are compared."""


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end, or None."""
    return max(filter(_is_whole, folder.glob("checkpoint-*")), key=step_of, default=None)


def _is_whole(checkpoint: Path) -> bool:
    """Tell whether a checkpoint has its mark, and each file that was there then, at least as long, and with the same bytes where their
    digests were taken: a node that loses its power, or a disk that is full, can cut or spoil files that seemed to be written."""
    mark = store.read_json(checkpoint / COMPLETE)
    files, digests = (mark.get(name, {}) if isinstance(mark, dict) else None for name in ("files", "digests"))
    if not isinstance(files, dict) or not isinstance(digests, dict) or not checkpoint.name.rpartition("-")[2].isdecimal():
        return False
    if not all(isinstance(size, int) for size in files.values()) or not all(
        (checkpoint / name).is_file() and (checkpoint / name).stat().st_size >= size for name, size in files.items()
    ):
        return False
    return all((checkpoint / name).is_file() and file_digest(checkpoint / name) == digest for name, digest in digests.items())


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def resumable(folder: Path) -> Path | None:
    """Return the checkpoint to go on from, and remove half-written ones: kept, they would push out complete ones.

    Rank 0 chooses for all: on a shared file system another node may for a while see an older state, and ranks that go on from
    different steps would train on without a word. Raises `UserError` on a rank that does not see what was chosen.
    """
    last = last_checkpoint(folder) if ranks.rank() == 0 else None
    if ranks.rank() == 0:
        for path in folder.glob("checkpoint-*"):
            if not _is_whole(path):
                logger.info("removing %s, which was not written to its end, or has changed since", path.name)
                shutil.rmtree(path)
    step = ranks.agree(step_of(last) if last else -1)
    if step < 0:
        return None
    chosen = folder / f"checkpoint-{step}"
    if not (chosen / COMPLETE).is_file():
        raise UserError(
            f"rank {ranks.rank()} on {ranks.node()} does not see {chosen}, from which rank 0 goes on: is the store the "
            "same folder on every node? If it only lags behind, run again"
        )
    return chosen


def fit_shards(trainer: Trainer, checkpoint: Path, machine: Machine) -> None:
    """Let DeepSpeed's shards, which fit only as many ranks as wrote them, be read by another number; DDP's fit any.

    Through DeepSpeed's universal checkpoint (one file per weight), which rank 0 makes beside the shards. Measured from two ranks
    to one and back: under ZeRO-2 the curve goes on to the last digit, under ZeRO-3 it drifts by 2e-4 nats in four steps (DeepSpeed
    0.19.8), so that is refused. Raises `UserError` then, and where one kind of checkpoint is to be read as another.
    """
    wrote = store.read_fields(checkpoint / COMPLETE)
    here = {
        "deepspeed": machine.deepspeed is not None,
        "zero_stage": machine.zero_stage,
        "world_size": machine.world_size,
    }
    there = {name: wrote.get(name, here[name]) for name in here}
    if here == there or not (here["deepspeed"] or there["deepspeed"]):
        return
    if {**there, "world_size": None} != {**here, "world_size": None} or machine.zero_stage == 3:
        raise UserError(
            f"{checkpoint.parent} was written by {_ranks_told(there)}, and this cluster file says {_ranks_told(here)}: DeepSpeed "
            f"cannot go on exactly from one to the other. Go on with a cluster file that says the former, or remove "
            f"{checkpoint.parent} to train this stage from its start"
        )
    with ranks.first():
        if ranks.rank() == 0 and not (checkpoint / "latest_universal").is_file():
            _make_universal(checkpoint)
    plugin = trainer.accelerator.state.deepspeed_plugin
    assert plugin is not None
    plugin.deepspeed_config["checkpoint"] = {"load_universal": True}


def _make_universal(checkpoint: Path) -> None:
    tag = (checkpoint / "latest").read_text().strip()
    logger.info("rewriting %s, which was written by another number of ranks", checkpoint.name)
    command = [sys.executable, "-P", "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(checkpoint / tag),
               "--output_folder", str(checkpoint / f"{tag}_universal"), "--inject_missing_state"]  # fmt: skip
    made = subprocess.run(command, env={**os.environ, "RANK": "0", "WORLD_SIZE": "1"})
    if made.returncode:
        raise UserError(
            f"DeepSpeed could not rewrite {checkpoint} for another number of ranks (see the log): go on with as many as wrote it, or "
            f"remove {checkpoint.parent} to train this stage from its start"
        )


def _ranks_told(how: dict[str, Any]) -> str:
    sharded = f"DeepSpeed ZeRO-{how['zero_stage']}" if how["deepspeed"] else "no DeepSpeed"
    return f"{how['world_size']} processes with {sharded}"
