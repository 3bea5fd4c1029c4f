"""Runs a stage's worker as one rank of torchrun of which every rank but 0 is late: it looks at the stage's folder once more when
its own work is done, as a node does to which a shared file system tells everything late.

    torchrun --nproc-per-node=2 -m tests.train.engine.late_rank JOB.json
"""

import sys
import time
from pathlib import Path

from rounds.train.engine import ranks, worker
from rounds.train.engine.kinds import Kind

SECONDS = 3


def main(job: worker.Job) -> None:
    code_of = worker.code_of

    def late(kind: Kind):
        def run(params, inputs, out, machine):
            counts = code_of(kind)(params, inputs, out, machine)
            if ranks.rank() > 0:
                time.sleep(SECONDS)
                assert list((out / "cache").rglob("*.parquet")), "rank 0 has tidied up"
            return counts

        return run

    worker.code_of = late
    worker.main(job)


if __name__ == "__main__":
    main(worker.Job.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")))
