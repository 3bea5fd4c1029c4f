"""What a stage asks of SLURM: the `slurm:` sections of a cluster file. Nothing here is in a stage key.

A section may stand at the top of the file (for every job), in a row (`cpu`, `train`, `infer`, `generate`), and in a row under `stages:`
(one stage, or all whose name fits a pattern). A later one states only what differs: fields that it leaves out stay.

Every value ends up in a script that a cluster runs, so each is held to the characters that such a value can have.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from rounds.data_prep.errors import UserError
from rounds.data_prep.schema import Between, Section

_SECRET = re.compile(r"((?<!_P)KEY|TOKEN)(_|$)|(^|_)(PWD|PASS|AUTH)(_|$)|SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIAL")
_OURS = {
    "account", "array", "begin", "chdir", "clusters", "comment", "constraint", "cpus-per-task", "dependency", "error",
    "export", "gpus", "gpus-per-node", "gpus-per-task", "gres", "hold", "job-name", "kill-on-invalid-dep", "mem",
    "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable", "partition", "qos", "requeue",
    "signal", "test-only", "time", "wait", "wrap",
}  # fmt: skip
"""Options of sbatch that the script sets itself, from the other fields or because the chain depends on them."""


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError(f"{value!r} holds a line break or a control character")
    return value


def _path(value: str) -> str:
    if not value.startswith("/") or any(mark in value for mark in '"\\'):
        raise ValueError(f"{value!r}: expected an absolute path without quotes or backslashes, the same on every node")
    return _one_line(value)


def _time(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f'found {value!r}: write the time in quotes, as "24:00:00" (YAML reads it as a number without)')
    if not re.fullmatch(r"(\d+-)?\d{1,3}:[0-5]\d:[0-5]\d", value):
        raise ValueError(f'found {value!r}: expected "HH:MM:SS" or "D-HH:MM:SS", such as "24:00:00"')
    return value


def _memory(value: Any) -> Any:
    if value is None:
        return None
    if not re.fullmatch(r"\d+[KMGT]|0", str(value)):
        raise ValueError(f"found {value!r}: expected a whole number with K, M, G or T, such as 64G, or 0 for all of the node's")
    return str(value)


def _extra(value: str) -> str:
    option = re.fullmatch(r"--([a-z][a-z0-9-]*)(=[^$`#\s]*)?", _one_line(value))
    if not option:
        raise ValueError(f"{value!r}: expected one long option without spaces, such as `--mail-type=END`; SLURM expands no variables here")
    # getopt takes any unique beginning of an option's name for it: `--tim=1` is --time.
    ours = sorted(each for each in _OURS if each.startswith(option[1]))
    if ours:
        raise ValueError(f"{value!r}: --{ours[0]} is set by Rounds; use the field for it if there is one")
    return value


def _variables(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} is no name of an environment variable")
        if _SECRET.search(name.upper()):
            raise ValueError(f"{name} looks like a secret, and scripts are kept in the store: set it in your login shell")
        _one_line(text)
    return value


Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:@+/,=-]*$", max_length=200)]
"""A name as SLURM, module and conda know it."""
AbsolutePath = Annotated[str, AfterValidator(_path)]
Count = Annotated[int, Between(1, 65535, "no node has more cores, and no job should start more often")]


class Container(Section):
    """An image that the stage's processes run in; the batch shell itself stays outside it, where SLURM's commands are."""

    kind: Literal["pyxis", "apptainer"]
    """`pyxis` (NVIDIA's plugin, `srun --container-image`) or `apptainer` (`apptainer exec --nv`)."""
    image: Annotated[str, Field(pattern=r"^[A-Za-z0-9/][A-Za-z0-9_.:@+/#=-]*$")]
    """Path of a .sqsh or .sif file, or a reference such as `nvcr.io#nvidia/pytorch:25.06-py3` (pyxis)."""
    mounts: tuple[Annotated[str, Field(pattern=r"^/[A-Za-z0-9_.@+/-]*(:/[A-Za-z0-9_.@+/-]*)?(:r[ow])?$")], ...] = ()
    """`/outside` or `/outside:/inside`. The store is mounted by itself; give the recipe's local data and models."""


class Environment(Section):
    """What a job sets up before it starts Python, in this order: modules, conda, venv, variables."""

    modules: tuple[Word, ...] = ()
    """Loaded by `module load`, after `module purge`."""
    conda: Word | None = None
    """Name or path of a conda environment."""
    venv: AbsolutePath | None = None
    """Folder of a virtual environment."""
    container: Container | None = None
    """Run the stage in an image."""
    python: Annotated[str, Field(pattern=r"^[A-Za-z0-9_./+-]+$")] | None = None
    """Interpreter. None is `python` of the venv, conda environment or container, else the one that submits."""
    variables: Annotated[dict[str, str], AfterValidator(_variables)] = Field(default_factory=dict)
    """Environment variables such as NCCL_SOCKET_IFNAME. Secrets are refused: scripts are kept in the store."""
    inherit: bool = True
    """Hand the submitting shell's environment to the job: HF_TOKEN and WANDB_API_KEY then reach it without being written
    anywhere. False starts from a login shell on the node, and keys come from ~/.netrc and the like."""


class Resources(Section):
    """What one stage's job asks for. Nodes and processes per node are fields of the row, not of this section."""

    partition: Word | None = None
    """Partition, or several with commas; None is the cluster's default."""
    account: Word | None = None
    """Account that is charged."""
    qos: Word | None = None
    """Quality of service."""
    gpus: Annotated[int, Between(0, 128, "no node has more")] = 0
    """GPUs per node."""
    gpu_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] | None = None
    """Kind of GPU as the cluster names it, such as `h100`; None takes any."""
    gpu_request: Literal["gres", "gpus-per-node", "gpus-per-task"] = "gres"
    """How the cluster wants GPUs asked for; there is always one task per node, so all three mean the same here."""
    cpus: Count = 4
    """CPUs per node."""
    memory: Annotated[str | None, BeforeValidator(_memory)] = None
    """Memory per node such as `64G`; `0` is all of the node's; None is the cluster's default."""
    time: Annotated[str, BeforeValidator(_time)] = "04:00:00"
    """Limit of one attempt, "HH:MM:SS" or "D-HH:MM:SS". A training stage that needs longer goes on in the next attempt."""
    constraint: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.&|*()\[\],!:=-]+$")] | None = None
    """Features that the nodes must have, such as `ib&h100`."""
    exclusive: bool = False
    """Take whole nodes."""
    requeue: bool = True
    """Go on by itself after preemption, node failure and the time limit. False stops there; `rounds run` goes on."""
    signal_seconds: Annotated[int, Field(ge=10, le=65535)] = 300
    """How long before the time limit (or preemption, where the cluster signals it) training is asked to save and stop. It
    must cover one optimizer step and one checkpoint; SLURM may signal up to 60 s early."""
    max_restarts: Count = 5
    """Restarts in a row without a new checkpoint (or, beside training, at all) after which the stage fails."""
    scratch: Annotated[str, Field(pattern=r"^(/|\$[A-Z_][A-Z0-9_]*(/|$))[A-Za-z0-9_./+-]*$")] | None = None
    """Fast folder of each node for temporary files and compiled kernels; may begin with a variable that is set on the node,
    such as `$SLURM_TMPDIR`."""
    extra: tuple[Annotated[str, AfterValidator(_extra)], ...] = ()
    """More options of sbatch, one each, such as `--mail-type=END` or `--reservation=night`."""
    environment: Environment = Environment()

    @property
    def hours(self) -> float:
        """The time limit in hours."""
        days, _, clock = self.time.rpartition("-")
        hours, minutes, seconds = (int(part) for part in clock.split(":"))
        return int(days or 0) * 24 + hours + minutes / 60 + seconds / 3600


def memory_bytes(asked: Resources) -> float | None:
    """Return the memory of a node that is asked for; None where that is all of it, or the partition's default."""
    if asked.memory in (None, "0"):
        return None
    return int(asked.memory[:-1]) * 1024.0 ** ("KMGT".index(asked.memory[-1]) + 1)


def check(resources: Resources, where: str, processes: int) -> None:
    """Refuse resources that do not fit each other, once all sections that apply are laid over each other."""
    if resources.gpus and processes > resources.gpus:
        raise UserError(f"{where}: {processes} processes per node for {resources.gpus} GPUs; give each a GPU of its own")
    if resources.gpu_type and not resources.gpus:
        raise UserError(f"{where}: gpu_type {resources.gpu_type!r} without gpus; say how many per node")
    if resources.hours * 3600 <= resources.signal_seconds + 60:
        raise UserError(
            f"{where}: time {resources.time} leaves no work before signal_seconds {resources.signal_seconds} "
            "(and SLURM may signal 60 s earlier); give more time or a shorter lead"
        )
    if resources.environment.container and (resources.scratch or "").startswith("$"):
        raise UserError(f"{where}: scratch {resources.scratch} cannot be mounted into a container; give it as an absolute path")
    if resources.environment.container and (resources.environment.venv or resources.environment.conda):
        raise UserError(f"{where}: environment has a container and a venv or conda: the image brings its own Python")
