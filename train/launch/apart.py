"""One node's processes of a stage that share its work by files alone: started, and ended with the first of them all.

`python -m rounds.train.launch.apart JOB.json PROCESSES NODE`. On node 0 this is as long, and ends as well, as rank 0. One of the others
that is lost ends nothing: its block is taken by another. On other nodes it ends when its processes have, or rank 0. A stage that was
asked to stop is given the time that its processes need for the blocks that they are at.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from rounds.data_prep.errors import UserError
from rounds.train.engine import apart, ranks, store
from rounds.train.engine.records import FAILED, STOP
from rounds.train.engine.worker import Job, end_with_parent

_POLL_SECONDS = 0.5


def main(file: Path, processes: int, node: int) -> int:
    """Start this node's processes and wait; returns the exit code."""
    job = Job.model_validate_json(file.read_text(encoding="utf-8"))
    if node == 0:
        apart.forget(job.folder)
    ours = [_start(file, node * processes + place, place, processes) for place in range(processes)]
    told, seen = set[int](), False
    try:
        while True:
            codes = [each.poll() for each in ours]
            for place, code in enumerate(codes):
                if code not in (None, 0, ranks.EXIT_STOPPED) and place not in told and (node, place) != (0, 0):
                    told.add(place)
                    print(f"rank {node * processes + place} was lost with exit code {code}; the others go on", flush=True)
            if None not in codes or (codes[0] not in (None, ranks.EXIT_STOPPED) if node == 0 else _over(job.folder, seen)):
                code = codes[0] if node == 0 and codes[0] else 0
                return code if code >= 0 else 128 - code
            seen = seen or apart.begun(job.folder)
            time.sleep(_POLL_SECONDS)
    finally:
        if node == 0:
            apart.forget(job.folder)
        for each in ours:
            each.kill()
        for each in ours:
            each.wait()


def _over(folder: Path, seen: bool) -> bool:
    """Tell, on another node, whether rank 0 has ended, for another reason than that all were asked to stop."""
    if store.done(folder) or (folder / FAILED).exists():
        return True
    return seen and not apart.begun(folder) and not (folder / STOP).exists()


def _start(file: Path, rank: int, place: int, processes: int) -> subprocess.Popen:
    """Start one process; each of several has a GPU of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"} | {"RANK": str(rank)}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if processes > 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = seen.split(",") if seen is not None else [str(number) for number in range(processes)]
        environment["CUDA_VISIBLE_DEVICES"] = devices[place] if place < len(devices) else ""
    return subprocess.Popen([sys.executable, "-P", "-m", "rounds.train.engine.worker", str(file)], env=environment)


if __name__ == "__main__":
    end_with_parent()
    try:
        sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
    except UserError as error:
        sys.exit(str(error))
