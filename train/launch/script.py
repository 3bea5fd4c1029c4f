"""The batch script of one stage: what the cluster file asks for, as text that a person can read and run.

Everything that comes from a recipe, a path or a cluster file is quoted by `shlex.quote` in the body, and held to safe characters
in the `#SBATCH` lines, which no shell reads.
"""

import functools
import hashlib
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Machine
from rounds.train.config.slurm import Resources
from rounds.train.engine import ranks, templates
from rounds.train.engine.graph import Stage
from rounds.train.launch.quiet import QUIET

_TOO_SHORT = "its time was over, and this stage keeps nothing half done: raise time in the cluster file so that it fits"
_TOO_SHORT_TO_SAVE = "its time was over before it had a new {}: raise time in the cluster file"

_CHECKPOINTS = "checkpoints -mindepth 2 -maxdepth 2 -name rounds-complete.json 2>/dev/null | sort -V | tail -n 1"
_BLOCKS = "cache/blocks -name '*.parquet' 2>/dev/null | wc -l"


def job_name(run: str, stage: str) -> str:
    """Name a job after its run and stage, in characters that no shell, path or SLURM table minds."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", f"{run}.{stage}")[:120]


def comment(folder: Path) -> str:
    """Return what marks a job as the one of a stage's folder in this store: the same stage may be queued from another."""
    place = hashlib.sha256(str(folder.resolve().parent).encode()).hexdigest()[:8]
    return f"rounds:{folder.name}:{place}"


def render(run: str, stage: Stage, folder: Path, machine: Machine, variables: Mapping[str, str]) -> str:
    """Write the script of a stage whose folder is `folder`, an absolute path, with more environment `variables`."""
    resources = machine.slurm
    nodes, processes = ranks.processes(stage.kind, machine)
    name = job_name(run, stage.name)
    trains, apart = stage.kind.trains, stage.kind.apart
    return _template().render(
        title=f"Stage {name} ({folder.name}), {nodes} x {max(resources.gpus, processes)} {'GPUs' if resources.gpus else 'processes'}",
        login_shell=bool(resources.environment.modules) or not resources.environment.inherit,
        options=_options(name, folder, resources, nodes, apart),
        folder=str(folder),
        environment=resources.environment,
        variables=_variables(machine, processes, variables),
        max_restarts=resources.max_restarts,
        requeue=resources.requeue,
        keeps=trains or apart,
        kept="block" if apart else "checkpoint",
        find=_BLOCKS if apart else _CHECKPOINTS,
        where="its last checkpoint" if trains else "its last block" if apart else "the start of this stage",
        too_short=_TOO_SHORT_TO_SAVE.format("block" if apart else "checkpoint") if trains or apart else _TOO_SHORT,
        signal_seconds=resources.signal_seconds,
        nodes=nodes,
        processes=processes,
        scratch=resources.scratch,
        together=(nodes, processes) != (1, 1) and not apart,
        srun_flags=_srun_flags(resources, folder, nodes, apart),
        command=_command(resources, folder, _program(stage, nodes, processes)),
    )


def _options(name: str, folder: Path, resources: Resources, nodes: int, apart: bool) -> list[str]:
    """List what follows `#SBATCH`, one option a line, no variable among them."""
    output = str(folder / "slurm").replace("%", "%%") + "/%j.txt"
    options = {
        "job-name": name,
        "comment": comment(folder),
        "output": output if re.fullmatch(r"[\w./%@+=:,-]+", output) else f'"{output}"',
        "open-mode": "append",
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "nodes": nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": resources.cpus,
        "mem": resources.memory,
        **_gpus(resources),
        "constraint": resources.constraint,
        "time": resources.time,
        "signal": f"B:USR1@{resources.signal_seconds}",
    }
    flags = ["--requeue" if resources.requeue else "--no-requeue", *(["--exclusive"] if resources.exclusive else [])]
    if apart and nodes > 1:
        flags.append("--no-kill")  # a node that is lost ends its own processes
    if not resources.environment.inherit:
        flags.append("--export=NONE")
    return [*(f"--{name}={value}" for name, value in options.items() if value is not None), *flags, *resources.extra]


def _gpus(resources: Resources) -> dict[str, str]:
    if not resources.gpus:
        return {}
    wanted = f"{resources.gpu_type}:{resources.gpus}" if resources.gpu_type else str(resources.gpus)
    return {resources.gpu_request: f"gpu:{wanted}" if resources.gpu_request == "gres" else wanted}


def _variables(machine: Machine, processes: int, more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a job. The cluster file's own variables come last, so they win."""
    environment = machine.slurm.environment
    own = environment.conda or environment.venv or environment.container
    variables = {
        "PYTHON": environment.python or ("python" if own else sys.executable),
        "OMP_NUM_THREADS": str(machine.threads or max(1, machine.slurm.cpus // processes)),
        **QUIET,
        **more,
    }
    return variables | environment.variables


def _srun_flags(resources: Resources, folder: Path, nodes: int, apart: bool) -> list[str]:
    """Return what `srun` needs besides: all nodes of the job, one task on each, whether one ends the others, and the image."""
    flags = [f"--nodes={nodes}", "--ntasks-per-node=1", *(["--no-kill"] if apart and nodes > 1 else [])]
    container = resources.environment.container
    if container and container.kind == "pyxis":
        flags += [
            f"--container-image={shlex.quote(container.image)}",
            f"--container-mounts={shlex.quote(','.join(_mounts(resources, folder)))}",
        ]
    return flags


def _mounts(resources: Resources, folder: Path) -> list[str]:
    """Return what an image must see: the store, the scratch folder, and what the cluster file lists."""
    container = resources.environment.container
    assert container
    store = str(folder.parent)
    if not re.fullmatch(r"[\w./@+-]+", store):
        raise UserError(f"the store {store} cannot be mounted into a container: use letters, digits and ./@+-_ only")
    places = [store, *([resources.scratch] if resources.scratch else []), *(container.mounts)]
    return [place if ":/" in place else f"{place.partition(':')[0]}:{place}" for place in places]


def _module(stage: Stage) -> str:
    return "rounds.train.launch.compare" if stage.kind.compares else "rounds.train.engine.worker"


def _program(stage: Stage, nodes: int, processes: int) -> list[str]:
    """Return what Python runs on each node: a stage's process, or what starts those of the node."""
    if (nodes, processes) == (1, 1):
        return [f'-m {_module(stage)} "$STAGE/job.json"']
    if stage.kind.apart:
        return [f'-m rounds.train.launch.apart "$STAGE/job.json" {processes} "$SLURM_NODEID"']
    return [
        f'-m torch.distributed.run --nnodes="$SLURM_NNODES" --nproc-per-node={processes} --node-rank="$SLURM_NODEID"',
        '--master-addr="$HEAD" --master-port="$PORT" --max-restarts=0',
        f'-m {_module(stage)} "$STAGE/job.json"',
    ]


def _command(resources: Resources, folder: Path, program: list[str]) -> list[str]:
    """Return the lines that each node runs, inside single quotes: no quote of ours may stand in them."""
    container = resources.environment.container
    lines = ['exec "$PYTHON" -P']
    if container and container.kind == "apptainer":
        binds = " ".join(f"--bind {mount}" for mount in _mounts(resources, folder))
        gpus = " --nv" if resources.gpus else ""
        lines = [f"exec apptainer exec{gpus} {binds}", container.image, '"$PYTHON" -P']
    return [*lines, *program]


@functools.cache
def _template() -> Any:
    environment = templates.environment(Path(__file__).resolve().parent)
    environment.keep_trailing_newline = True
    environment.filters["quote"] = shlex.quote
    return environment.get_template("job.sh.jinja")
