"""Why a stage did not finish, as one message: what its ranks said, and what torchrun said of those that could not speak."""

import re
import shutil
from pathlib import Path

from rounds.train.engine import store
from rounds.train.engine.records import Failure, log_of

_FULL_BYTES = 1 << 20
_ENDED = re.compile(r"host\s+: (\S+)\s+rank\s+: (\d+) .*\s+exitcode\s+: -(\d+) \(pid: (\d+)\)")
"""As torchrun sums up a rank that was ended by a signal; 15 is how it ends the others itself."""
_TASK = re.compile(r"^srun: error: (\S+): tasks? [\d,-]+: (.+)$", re.MULTILINE)
"""As srun says how the processes that it started on a node ended; the first is the cause of the others."""
_WORDS = re.compile(
    r"^(\S*(?:Error|Exception): .+|.*(?:: No such file or directory|: command not found|: Permission denied|: not found"
    r"|: Stale file handle))$",
    re.MULTILINE,
)
_SHELL = {
    "126": "its shell may not run what it was to run",
    "127": "its shell found no such program. Are Python, and the image if there is one, at the same place on that node?",
}
"""What a shell means by these exit codes; its own words are lost where srun ends the step at once."""
_SIGNALLED = "SignalException"
_PORT_TAKEN = "EADDRINUSE"


def why(name: str, folder: Path, exit_code: int | None, torchrun_output: str = "") -> str:
    """Explain the end of stage `name`. `torchrun_output` is what the agents of its nodes printed, if there were any.

    A rank that is killed writes nothing, and the others only that they lost contact: then the agent knows the cause.
    """
    failure = store.failure(folder)
    killed = killed_rank(torchrun_output)
    if killed and (failure is None or failure.lost_contact):
        rank, how = killed
        message = f"{how}. Its log: {log_of(folder, int(rank))}. The same command goes on from the last checkpoint"
        store.write_failure(folder, Failure(message=message, user_error=True))
        return f"{name}: {message}."
    if failure is None:
        if _PORT_TAKEN in torchrun_output:
            return f"{name} did not start: the port for its ranks was taken by another program. Run the same command again"
        return f"{name} did not finish: {_cause(folder, exit_code)}. Log: {log_of(folder, 0)}. The same command goes on from here."
    if failure.user_error:
        return f"{name}: {failure.message}"
    log = failure.log or log_of(folder, 0)
    return f"{name} failed: {failure.message}. The traceback is in {log}."


_PERHAPS = " (out of memory, perhaps)"
_KILLED = " (killed; out of memory, perhaps)"


def killed_rank(torchrun_output: str) -> tuple[str, str] | None:
    """Return the first rank that was ended by a signal, and how, by what the agents of its nodes printed."""
    found = next((found for found in _ENDED.finditer(torchrun_output) if found[3] != "15"), None)
    if found is None:
        return None
    host, rank, signal, pid = found.groups()
    return (
        rank,
        f"rank {rank} on {host} (process {pid}) was ended by signal {signal}{_KILLED if signal == '9' else ''}",
    )


def first_task(srun_output: str) -> str | None:
    """Say how the first of a step's processes to end badly did, and on which node, by what srun printed; None where none did.

    The others are ended by srun, with SIGKILL at last: that is not the kernel's doing, and their nodes are not to blame.
    """
    found = _TASK.search(srun_output)
    if found is None:
        return None
    node, how = found.groups()
    exited = re.fullmatch(r"Exited with exit code (\d+)", how)
    if exited is None:
        return f"a process on {node} was ended by a signal: {how}{_PERHAPS if how == 'Killed' else ''}"
    words = [line for line in _WORDS.findall(srun_output[: found.start()]) if _SIGNALLED not in line and "ChildFailedError" not in line]
    says = words[-1].strip()[:300] if words else _SHELL.get(exited[1], "")
    return f"a process on {node} ended first, with exit code {exited[1]}{f': {says}' if says else ''}"


def _cause(folder: Path, exit_code: int | None) -> str:
    cause = f"its process was ended by signal {-exit_code}" if exit_code and exit_code < 0 else f"exit code {exit_code}"
    if exit_code == -9:
        cause += _KILLED
    if shutil.disk_usage(folder).free < _FULL_BYTES:
        cause += "; the store's disk is full"
    return cause


def port_taken(torchrun_output: str) -> bool:
    """Tell whether the ranks could not meet because another program held their port."""
    return _PORT_TAKEN in torchrun_output
