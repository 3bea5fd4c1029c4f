"""Runs several stages one after the other as one rank of torchrun: starting ranks afresh for each would take most of the time.

    torchrun --nproc-per-node=2 -m tests.train.engine.ranks_driver CASES.json

Each case is {function, params, inputs, out, row}; the stage's own `run` is called, as the worker does. With `cut_to` N
and `of` FOLDER it starts from what FOLDER would hold had it been killed after step N. One that ends with `ranks.Stopped` or a
`UserError` leaves the message in `OUT/ended.txt`.
"""

import json
import shutil
import sys
import time
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Machine
from rounds.train.engine import ranks
from rounds.train.training import checkpoints
from tests import staged


def main(cases: list[dict]) -> None:
    others = ranks.Others() if ranks.world_size() > 1 else None
    joined = False
    for case in cases:
        machine, out = Machine.model_validate(case["row"]), Path(case["out"])
        if others and not joined:
            others.join(machine)
            joined = True
        began = time.monotonic()
        with ranks.first():
            if "cut_to" in case and ranks.rank() == 0:
                shutil.copytree(case["of"], out)
                _cut(out, case["cut_to"])
            out.mkdir(exist_ok=True)
        inputs = {name: Path(path) for name, path in case["inputs"].items()}
        ended, counts = None, {}
        try:
            counts = staged.run(case["function"], case["params"], inputs, out, machine)
        except (ranks.Stopped, UserError) as error:
            ended = f"{type(error).__name__}: {error}"
        ranks.barrier()
        if ranks.rank() == 0:
            (out / "counts.json").write_text(json.dumps(counts))
            if ended:
                (out / "ended.txt").write_text(ended)
            print(f"{out.name}: {time.monotonic() - began:.1f} s {ended or ''}", flush=True)
        # accelerate and transformers remember how the first training of a process was set up.
        AcceleratorState._reset_state(True)
        PartialState._reset_state()
        GradientState._reset_state()
        unset_hf_deepspeed_config()
    ranks.leave()


def _cut(out: Path, step: int) -> None:
    """Leave the checkpoint of a step as the last whole one, the one after it half written, and no policy."""
    for checkpoint in (out / "checkpoints").glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > step:
            (checkpoint / checkpoints.COMPLETE).unlink()
    for name in ("model", "adapter"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("policy.json", "metrics.jsonl", "ended.txt"):
        (out / name).unlink(missing_ok=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
