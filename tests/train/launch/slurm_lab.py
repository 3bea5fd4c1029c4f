"""A small real SLURM on this machine, for tests: munged, slurmctld and two slurmd, all on 127.0.0.1 and in one folder.

    python -m tests.train.launch.slurm_lab FOLDER    # starts one, says how to use it, and stops it at the end of input

It needs the programmes of SLURM, which `missing` names the Debian packages of, but neither systemd nor root. As root on a
machine with cgroups of version 1 it also holds jobs to their memory. A node is a slurmd with an address of its own in 127/8:
the address is its name as well, so that `torchrun` finds it and no file of the system is written to.

Tried with SLURM 22.05 (Debian 12).
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

PROGRAMMES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
"""Programme -> the Debian package that brings it."""
CGROUPS = Path("/sys/fs/cgroup")
NODES = 2
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

CONFIGURATION = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
# cred_expire is also how long a requeued job waits, 120 s by default.
AuthInfo=socket={folder}/run/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/{track}
TaskPlugin=task/{task}
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
PropagateResourceLimits=NONE
# A node claims more than the machine has.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
EnforcePartLimits=ALL
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
# Short times, to suit tests; a job stays known for an hour after its end.
KillWait=5
CompleteWait=0
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=20
ReturnToService=2
MinJobAge=3600
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
{nodes}
# main is never preempted; high comes before lowgrace, whose jobs have 20 s of notice.
PartitionName=main Default=YES Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=high Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=100 PreemptMode=OFF State=UP
PartitionName=lowgrace Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 State=UP
"""


def missing() -> list[str]:
    """Name the Debian packages whose programmes are not on this machine."""
    path = f"{os.environ.get('PATH', '')}:{PATH}"
    return [package for programme, package in PROGRAMMES.items() if shutil.which(programme, path=path) is None]


def install(packages: list[str]) -> None:
    """Install Debian packages, as root; no service of theirs is started."""
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=300"]
    environment = {**os.environ, "RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"}
    for command in ([*apt, "update"], [*apt, "install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stdout + done.stderr)[-2000:]}")


class Lab:
    """A SLURM in a folder, whose path must be short, since Unix sockets lie in it. Raises `RuntimeError` with the log of what does
    not start."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.configuration = folder, folder / "slurm.conf"
        self.holds_memory = os.geteuid() == 0 and all((CGROUPS / kind).is_dir() for kind in ("memory", "freezer"))
        network = f"127.{secrets.randbelow(254) + 1}.{secrets.randbelow(254) + 1}"  # another lab beside it has others
        self.nodes = [f"{network}.{number + 1}" for number in range(NODES)]
        self.environment = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/", "SLURM_CONF": str(self.configuration),
                            "SLURM_LAB": str(folder)}  # fmt: skip

    def start(self) -> None:
        """Start the cluster and wait until its nodes take jobs."""
        for name in ("run", "log", "state", "spool"):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        self._configure()
        self.mend()

    def mend(self) -> None:
        """Start what is not running, and wait until all nodes take jobs."""
        socket_path = self.folder / "run" / "munge.socket"
        munged = ["munged", "--force", f"--socket={socket_path}", f"--key-file={self.folder}/munge.key", "--num-threads=2",
                  f"--seed-file={self.folder}/munge.seed", f"--pid-file={self.folder}/run/munged.pid",
                  f"--log-file={self.folder}/log/munged.log"]  # fmt: skip
        self._daemon("munged", munged)
        self._daemon("slurmctld", ["slurmctld", "-f", str(self.configuration)])
        for node in self.nodes:
            self._daemon(f"slurmd-{node}", ["slurmd", "-f", str(self.configuration), "-N", node])
        self._wait(self._takes_jobs, 45, "slurmctld")

    def stop_controller(self) -> None:
        """Stop slurmctld alone: nobody answers until `mend`."""
        self._end("slurmctld", 20)

    def stop(self) -> None:
        """Cancel all jobs, then end the daemons and whatever a lost node has left. Touches no other process."""
        if self._pid("slurmctld"):
            self._call("scancel", f"--user={os.geteuid()}")
            with suppress(RuntimeError):
                self._wait(lambda: not self._call("squeue", "-h").stdout, 12, "slurmctld")
        for node in self.nodes:
            self._end(f"slurmd-{node}", 10)
        self._end("slurmctld", 20)
        for pid in self._left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._end("munged", 5)
        for node in self.nodes:
            for folder in CGROUPS.glob(f"*/slurm_{node}"):
                for inner in sorted(folder.rglob("*/"), reverse=True):  # rmdir takes only groups that are empty
                    with suppress(OSError):
                        inner.rmdir()
                with suppress(OSError):
                    folder.rmdir()

    def pid_of(self, node: str) -> int:
        """Return the process of a node's slurmd."""
        pid = self._pid(f"slurmd-{node}")
        assert pid
        return pid

    def _configure(self) -> None:
        ports = free_ports(1 + NODES)
        host = socket.gethostname().partition(".")[0]
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=32 RealMemory=1000000 State=UNKNOWN"
            for node, port in zip(self.nodes, ports[1:], strict=True)
        )
        track, task = ("cgroup", "cgroup") if self.holds_memory else ("linuxproc", "none")
        self.configuration.write_text(
            CONFIGURATION.format(host=host, port=ports[0], user=self._user(), folder=self.folder, track=track, task=task, nodes=nodes)
        )
        if self.holds_memory:
            lines = ["CgroupPlugin=cgroup/v1", f"CgroupMountpoint={CGROUPS}", "ConstrainRAMSpace=yes", "ConstrainSwapSpace=no",
                     "ConstrainCores=no", "ConstrainDevices=no"]  # fmt: skip
            (self.folder / "cgroup.conf").write_text("\n".join(lines) + "\n")

    def _user(self) -> str:
        return subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()

    def _daemon(self, name: str, command: list[str]) -> None:
        """Start a daemon unless it runs."""
        if self._pid(name):
            return
        with (self.folder / "log" / f"{name}-start.log").open("w") as log:
            done = subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if done.returncode:
            raise RuntimeError(f"{name} does not start: {self._log(name)}")
        self._wait(lambda: self._pid(name) is not None, 10, name)

    def _pid(self, name: str) -> int | None:
        """Return the process of a daemon, if it runs and is of this lab: a pid file may outlive its process."""
        try:
            pid = int((self.folder / "run" / f"{name}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if f"SLURM_LAB={self.folder}" in environment_of(pid) else None

    def _end(self, name: str, seconds: float) -> None:
        pid = self._pid(name)
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        try:
            self._wait(lambda: self._pid(name) is None, seconds, name)
        except RuntimeError:
            os.kill(pid, signal.SIGKILL)

    def _left(self) -> Iterator[int]:
        """Yield what is left of jobs: slurmstepd, and processes of steps, which carry this lab's configuration."""
        for path in Path("/proc").glob("[0-9]*"):
            items = environment_of(int(path.name))
            ours = f"SLURM_LAB={self.folder}" in items or f"SLURM_CONF={self.configuration}" in items
            if ours and ("slurmstepd" in name_of(int(path.name)) or any(i.startswith("SLURM_JOB_ID=") for i in items)):
                yield int(path.name)

    def _takes_jobs(self) -> bool:
        states = self._call("sinfo", "-h", "-p", "main", "-o", "%T").stdout.split()
        return bool(states) and set(states) <= {"idle", "mixed", "allocated", "completing"}

    def _call(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)

    def _wait(self, condition: Callable[[], bool], seconds: float, name: str) -> None:
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                raise RuntimeError(f"{name} is not as expected within {seconds} s: {self._log(name)}")
            time.sleep(0.1)

    def _log(self, name: str) -> str:
        paths = [self.folder / "log" / f"{name}{end}.log" for end in ("", "-start")]
        return "\n".join(path.read_text()[-2000:] for path in paths if path.exists())


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now, below those that Linux gives to outgoing connections and above a job's own."""
    found: list[int] = []
    for port in range(17000 + os.getpid() % 200 * 10, 20000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


def environment_of(pid: int) -> list[str]:
    """Return what a process was started with; nothing for one that is gone or another's."""
    try:
        return (Path("/proc") / str(pid) / "environ").read_text(errors="replace").split("\0")
    except OSError:
        return []


def name_of(pid: int) -> str:
    """Return a process's command line."""
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    made = Lab(Path(sys.argv[1]))
    made.start()
    print(f"export SLURM_CONF={made.configuration}    # end of input stops it", flush=True)
    try:
        sys.stdin.read()
    finally:
        made.stop()
