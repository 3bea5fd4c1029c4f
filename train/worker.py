"""Run one stage in this process: claim its folder, call its function, write `done.json` last.

The same entry serves every launcher: it needs the stage's folder, prepared by `store.prepare`, and a cluster row. A launcher
that starts a fresh interpreter calls `python -m train.worker JOB.json`, where the file holds a `Job`.
"""

import importlib
import json
import logging
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.schema import Section
from train import policy, store, tracking
from train.cluster import Row

logger = logging.getLogger("rounds")

_DATA_STAGES = {"source": "data_prep.build", "data": "data_prep.build"}


class Job(Section):
    """What a launcher tells a worker besides the stage itself; none of it can change the answer."""

    folder: Path
    row: Row
    wandb: dict[str, str | None] | None = None
    """Project, entity and group; None records nothing."""


def function_of(name: str) -> Callable[[dict, dict[str, Path], Path, Row], dict]:
    """Import the code of a stage: train/stages/NAME.py, or the data stages of data_prep."""
    if name in _DATA_STAGES:
        return getattr(importlib.import_module(_DATA_STAGES[name]), name)
    return importlib.import_module(f"train.stages.{name}").run


def run(job: Job) -> None:
    """Compute the stage unless it is done; when another run holds it, wait and take its answer.

    On failure `failed.json` says why, and the exception goes on to the caller.
    """
    with store.claim(job.folder):
        if store.done(job.folder):
            return
        (job.folder / "failed.json").unlink(missing_ok=True)
        (job.folder / "progress.json").unlink(missing_ok=True)
        spec = store.spec(job.folder)
        inputs = store.inputs(job.folder)
        started = time.time()
        try:
            record = _skip(spec, inputs)
            if record and spec["function"] in ("sft", "dpo"):
                policy.write_same(job.folder, inputs["policy"])  # what follows, a gate or the export, goes on with that
            record = record or _compute(spec, inputs, job)
        except Exception as error:  # not an interruption: that is no failure, and the next run goes on
            _record_failure(job.folder, error)
            raise
        _remove_side_folders(job.folder)
        digests = {
            str(path.relative_to(job.folder)): store.file_digest(path) for path in store.result_files(job.folder)
        }
        store.write_json(
            job.folder / "done.json",
            {"status": "done", **record, "seconds": round(time.time() - started, 3), "finished": time.time(),
             "digests": digests},
        )  # fmt: skip
        logger.info("done in %.1f s: %s", time.time() - started, json.dumps(record.get("counts", {}))[:2000])


def _compute(spec: dict, inputs: dict[str, Path], job: Job) -> dict[str, Any]:
    for name, folder in inputs.items():
        entry = spec["inputs"][name]
        if "stage" in entry and not store.done(folder):
            raise UserError(f"input {name} ({folder.name}) is not finished; run the recipe again")
        if (
            "path" in entry
            and store.asset(job.folder.parent, folder, tuple(entry["patterns"])).digest != entry["digest"]
        ):
            raise UserError(f"input {name}: {folder} has changed since the run was planned; run the recipe again")
    logger.info("stage %s (%s) starts", spec["name"], job.folder.name)
    with tracking.job(job.wandb, spec, job.folder):
        counts = function_of(spec["function"])(spec["params"], inputs, job.folder, job.row)
    return {"counts": counts}


def _skip(spec: dict, inputs: dict[str, Path]) -> dict[str, Any] | None:
    """A stage behind a gate that ended the rounds has nothing to do; it is finished as skipped, not failed."""
    if spec["after_stop"]:
        return None
    for name, folder in inputs.items():
        record = (store.done(folder) if "stage" in spec["inputs"][name] else None) or {}
        if record.get("status") == "skipped":
            return {"status": "skipped", "because": record["because"]}
        if record.get("counts", {}).get("stops_rounds"):
            gate = store.spec(folder)["name"]
            return {"status": "skipped", "because": f"the rounds ended at {gate}: {record['counts']['decision']}"}
    return None


def _record_failure(folder: Path, error: Exception) -> None:
    if isinstance(error, UserError):
        logger.error("%s", error)
    else:
        logger.error("%s", traceback.format_exc())
    known = isinstance(error, UserError)
    text = (
        str(error) if known else f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    )
    failure = {"message": text, "user_error": known, "time": time.time()}
    try:
        store.write_json(folder / "failed.json", failure)
    except OSError:  # the disk is full, perhaps: the caller still hears of the first error
        logger.error("could not write %s", folder / "failed.json")


def _remove_side_folders(folder: Path) -> None:
    for name in ("checkpoints", "cache"):
        shutil.rmtree(folder / name, ignore_errors=True)


def main(job: Job) -> None:
    """Entry of a fresh process: everything printed goes to the stage's log, and the exit code tells the outcome."""
    _write_to(job.folder / "log.txt")
    try:
        run(job)
    except BaseException:
        sys.exit(1)


def _write_to(log: Path) -> None:
    """Send this process's output, its libraries' and its children's to the log file."""
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(target, stream)
    os.close(target)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)


if __name__ == "__main__":
    main(Job.model_validate_json(Path(sys.argv[1]).read_text()))
