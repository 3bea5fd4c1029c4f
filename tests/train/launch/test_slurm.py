"""Whole runs on a real SLURM: two virtual nodes of this machine, started by `slurm_lab` once for all tests.

Every disturbance is SLURM's or the operating system's own: a higher partition preempts, a node's processes are killed, time runs
out. The measure is always the same: the weights are those of an undisturbed local run with as many processes.

Covers: train/commands/cancel, train/commands/jobs.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from tests.train import command_line
from tests.train.launch import slurm_lab
from tests.train.launch.slurm_lab import Lab

HERE = Path(__file__).parents[1]
RECIPE = HERE / "mini_slurm.yaml"
EVALUATED = HERE / "mini.yaml"
WAIT_SECONDS = 400
LOCAL = "train: {micro_batch_size: 2, save_steps: 20, threads: 1, processes: 2}\ninfer: {threads: 1}\n"
CLUSTER = """
kind: slurm
slurm: {time: "00:10:00", signal_seconds: 60, cpus: 1, memory: 2G, max_restarts: 2}
train: {micro_batch_size: 2, save_steps: 20, threads: 1, nodes: 2}
infer: {threads: 1}
stages:
  dpo.*: {slurm: {partition: lowgrace}}
"""

pytestmark = pytest.mark.xdist_group("slurm")


class Cluster(Lab):
    """A running SLURM, and what the tests do with it."""

    @property
    def variables(self) -> dict[str, str]:
        """What a command needs to talk to it."""
        return {"SLURM_CONF": str(self.configuration), "COLUMNS": "200"}

    def call(self, *command: str | Path) -> str:
        """Run a command of SLURM's and return what it printed."""
        environment = {**os.environ, **self.variables}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def rounds(self, *arguments: str | Path) -> str:
        """Run the command line here and return all that it printed."""
        output = command_line.here(*arguments, environment=self.variables)
        assert "Traceback" not in output
        return output

    def rounds_afresh(self, *arguments: str | Path) -> str:
        """The same in a fresh interpreter, as when two people run it."""
        return command_line.afresh(*arguments, environment=self.variables)

    def job(self, folder: Path) -> str:
        """Return the id of a stage's job."""
        return json.loads((folder / "slurm" / "job.json").read_text())["id"]

    def state(self, job: str) -> str:
        """Return a job's state."""
        return self.call("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")

    def restarts(self, job: str) -> int:
        """Return how often a job was started again."""
        return int(self.call("squeue", "-h", "-t", "all", "-j", job, "-O", "RestartCnt"))

    def queued(self) -> set[str]:
        """Return the ids of all jobs that will run or run."""
        return set(self.call("squeue", "-h", "-o", "%i").split())

    def fill(self) -> str:
        """Take both nodes, in the partition that nobody is put before."""
        wrap = ["--wrap", "sleep 600", "--output", "/dev/null"]
        return self.call("sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", *wrap)

    def lose_node2(self) -> None:
        """Kill everything of the second node, as when its power is gone."""
        os.kill(self.pid_of(self.nodes[1]), signal.SIGKILL)
        doomed = processes(str(self.configuration), self.nodes[1])
        for pid in doomed.keys() | {parent for parent in doomed.values() if "slurmstepd" in slurm_lab.name_of(parent)}:
            os.kill(pid, signal.SIGKILL)

    def end_agent(self, node: str) -> None:
        """End a node's torchrun from outside, as SLURM itself does with what it takes for an earlier attempt."""
        agents = [pid for pid in processes(str(self.configuration), node) if "torch.distributed.run" in slurm_lab.name_of(pid)]
        for pid in agents:
            os.kill(pid, signal.SIGTERM)
        assert agents


def processes(configuration: str, node: str) -> dict[int, int]:
    """Return the processes of a node's jobs, with their parents. Other clusters on this machine have nodes of that name too."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            items = (path / "environ").read_text(errors="replace").split("\0")
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if {f"SLURM_CONF={configuration}", f"SLURMD_NODENAME={node}"} <= set(items) and any(
            item.startswith("SLURM_PROCID=") for item in items
        ):
            found[int(path.name)] = parent
    return found


@pytest.fixture(scope="session")
def lab() -> Iterator[Cluster]:
    """A cluster of two nodes; tests that need it are skipped where none can be had."""
    packages = slurm_lab.missing()
    if packages and os.environ.get("CI") == "true" and os.geteuid() == 0 and shutil.which("apt-get"):
        slurm_lab.install(packages)  # so that CI runs these tests, whatever its image holds
    elif packages:
        pytest.skip(f"no SLURM on this machine: apt-get install --no-install-recommends {' '.join(packages)}")
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as folder:  # short: Unix socket paths
        made = Cluster(Path(folder))
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Path:
    """The cluster file."""
    path = tmp_path_factory.mktemp("cluster") / "slurm.yaml"
    path.write_text(CLUSTER)
    return path


@pytest.fixture(scope="module")
def local(lab, cluster) -> Path:
    """A store in which the recipe has run to its end on this machine, with two processes."""
    file = cluster.with_name("local.yaml")
    file.write_text(LOCAL)
    store = cluster.parent / "local"
    lab.rounds("run", RECIPE, "--cluster", file, "--store", store)
    return store


@pytest.fixture(scope="module")
def evaluated(lab, cluster, undisturbed) -> Path:
    """A store in which a recipe with evaluations and no gate has run to its end on this machine."""
    store = Path(shutil.copytree(undisturbed, cluster.parent / "evaluated"))
    lab.rounds("run", EVALUATED, "--set", "gate=null", "--store", store)
    return store


@pytest.fixture
def before_dpo(local, tmp_path) -> Path:
    """A store in which everything before DPO is done."""
    store = Path(shutil.copytree(local, tmp_path / "store"))
    for folder in from_dpo_on(store):
        shutil.rmtree(folder)
    return store


def from_dpo_on(store: Path) -> list[Path]:
    """Return the folders of the DPO stage and of all that need it."""
    found = [only(store, "dpo")]
    inputs = {
        path.parent: {entry.get("stage") for entry in json.loads(path.read_text())["inputs"].values()}
        for path in store.glob("*/stage.json")
    }
    while new := [f for f in inputs if f not in found and inputs[f] & {folder.name for folder in found}]:
        found += new
    return found


def submitted(told: str) -> set[str]:
    """Name the stages that a command says it has submitted."""
    return {line.split()[0] for line in told.splitlines() if " submitted " in line}


def only(store: Path, name: str) -> Path:
    """Return the folder of the one stage of that function."""
    (found,) = store.glob(f"{name}-*")
    return found


def short(folder: Path) -> Path:
    """Write a cluster file for stages of one process."""
    path = folder / "one process.yaml"
    path.write_text('kind: slurm\nslurm: {time: "00:10:00", cpus: 1, memory: 2G}\ntrain: {threads: 1}\ninfer: {threads: 1}\n')
    return path


def weights(folder: Path) -> dict[str, str]:
    """Return the digests of a finished stage's weights."""
    digests = json.loads((folder / "done.json").read_text())["digests"]
    return {name: digest for name, digest in digests.items() if name.endswith(".safetensors")}


def wait_until(condition, complaint, seconds_between: float = 0.3) -> None:
    """Wait for a condition, or fail with a complaint, which may be a function that says more."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, complaint() if callable(complaint) else complaint
        time.sleep(seconds_between)


def wait_for_step(folder: Path, past: int) -> None:
    """Wait until a training stage is past a step."""

    def there() -> bool:
        try:
            return json.loads((folder / "progress.json").read_text())["step"] > past
        except (FileNotFoundError, json.JSONDecodeError):
            return False

    wait_until(there, f"{folder.name} never came past step {past}")


def test_a_chain_that_is_cancelled_preempted_and_loses_a_node_ends_with_the_same_weights(lab, local, cluster, tmp_path):
    store = tmp_path / "a store's $(name) 5%"
    start = time.monotonic()
    told = lab.rounds("run", RECIPE, "--cluster", cluster, "--store", store)
    assert time.monotonic() - start < 60 and len(submitted(told)) == len(list(store.glob("*/slurm/job.sh"))) > 10
    wait_until(lambda: list(store.glob("dpo-*")), "no DPO stage")
    dpo = only(store, "dpo")

    wait_for_step(dpo, 10)
    first = lab.job(dpo)
    lab.call("scancel", first)
    wait_until(lambda: not lab.queued(), "a cancelled job keeps others waiting")
    assert lab.state(first) == "CANCELLED"
    status = lab.rounds("status", RECIPE, "--store", store)
    assert "dpo.first: cancelled: by scancel" in status and "behind dpo.first" in status
    assert f"to go on: rounds run {RECIPE} --cluster {cluster} --store" in status

    told = lab.rounds("run", RECIPE, "--cluster", cluster, "--store", store)
    assert {"dpo.first", "export", "report"} <= submitted(told) and "reference.first" not in submitted(told)
    job = lab.job(dpo)
    assert job != first
    wait_for_step(dpo, 60)
    high = lab.fill()
    wait_until(lambda: lab.state(high) == "RUNNING", "nothing was preempted")
    lab.call("scancel", high)
    assert list(dpo.glob("checkpoints/*/rounds-complete.json"))

    wait_until(lambda: lab.restarts(job) == 1 and lab.state(job) == "RUNNING", "a preempted job did not start again")
    wait_for_step(dpo, 140)
    lab.lose_node2()
    wait_until(lambda: lab.restarts(job) >= 2, "a job on a lost node was not requeued")
    assert {lab.state(lab.job(only(store, name))) for name in ("export", "report")} == {"PENDING"}
    lab.mend()  # slurmctld repeats what the lost node did not hear, which ends the new attempt where it is back within seconds
    wait_for_step(dpo, 160)
    before = lab.restarts(job)
    lab.stop_controller()  # away while the job wants to requeue itself
    lab.end_agent(lab.nodes[1])
    time.sleep(8)
    lab.mend()
    wait_until(lambda: lab.restarts(job) > before, "a step that was ended from outside is not started again")
    wait_until(lambda: not lab.queued(), lambda: lab.rounds("status", RECIPE, "--store", store))
    assert (only(store, "report") / "done.json").exists(), lab.rounds("status", RECIPE, "--store", store)

    for name in ("sft", "dpo", "export"):
        assert weights(only(store, name)) == weights(only(local, name)), name
    assert json.loads((dpo / "done.json").read_text())["counts"]["resumed_from"]
    assert lab.state(job) == "COMPLETED"
    assert "300 steps" in lab.rounds("status", RECIPE, "--store", store)
    told = lab.rounds("run", RECIPE, "--cluster", cluster, "--store", store)
    assert submitted(told) == set()


def test_running_again_submits_nothing_twice_and_cancel_takes_back_only_this_runs_jobs(lab, before_dpo, cluster):
    filler = lab.fill()
    run, more = ["run", RECIPE, "--cluster", cluster, "--store", before_dpo], ["--set", "description=another"]
    with ThreadPoolExecutor(2) as people:  # who start the same at once
        first, second = (submitted(told) for told in people.map(lambda _: lab.rounds_afresh(*run), range(2)))
    assert {"dpo.first", "export", "report"} <= first | second and set() in (first, second)
    ours = lab.queued() - {filler}
    assert submitted(lab.rounds(*run)) == set() and lab.queued() == {filler} | ours
    changed = Path(shutil.copy(cluster, before_dpo / "changed.yaml"))
    changed.write_text(changed.read_text().replace("memory: 2G", "memory: 3G"))
    assert "queued as the cluster file was then" in " ".join(lab.rounds("run", RECIPE, "--cluster", changed, "--store", before_dpo).split())

    # What SLURM has is known even where the note of it was lost, as when the submitting machine died between the two.
    (only(before_dpo, "dpo") / "slurm" / "job.json").unlink()
    assert submitted(lab.rounds(*run)) == set() and lab.queued() == {filler} | ours

    # Another run of the same DPO shares its job, and keeps it when the first is cancelled.
    lab.rounds(*run, *more)
    theirs = lab.queued() - ours - {filler}
    shared = {lab.job(only(before_dpo, "dpo"))}
    assert theirs and shared <= ours
    told = lab.rounds("cancel", RECIPE, "--store", before_dpo)
    assert "left job" in told
    wait_until(lambda: lab.queued() == {filler} | shared | theirs, lambda: f"{lab.queued()} {ours} {theirs}: {told}")
    lab.rounds("cancel", RECIPE, "--store", before_dpo, *more)
    wait_until(lambda: lab.queued() == {filler}, lambda: str(lab.queued()))
    assert "cancelled 0 jobs" in lab.rounds("cancel", RECIPE, "--store", before_dpo)
    lab.call("scancel", filler)


def test_a_stage_that_fails_says_why_takes_its_dependents_along_and_is_not_retried(lab, before_dpo, cluster):
    wrong = ["--set", "rounds.first.max_length=8"]
    lab.rounds("run", RECIPE, "--cluster", cluster, "--store", before_dpo, *wrong)
    wait_until(lambda: not lab.queued(), "dependents of a failed stage wait for ever")
    status = lab.rounds("status", RECIPE, "--store", before_dpo, *wrong)
    assert "tokenize.first: failed: no pair is left to train on" in status and "behind tokenize.first" in status
    assert "--set rounds.first.max_length=8" in status.split("to go on:")[1]
    failed = [path.parent for path in before_dpo.glob("tokenize-*/failed.json")]
    assert len(failed) == 1 and lab.restarts(lab.job(failed[0])) == 0
    logs = lab.rounds("logs", RECIPE, "tokenize.first", "--store", before_dpo, *wrong)
    assert "no pair is left to train on" in logs
    followed = lab.rounds("logs", RECIPE, "tokenize.first", "-f", "--store", before_dpo, *wrong)
    assert followed.splitlines()[-1].startswith("-- tokenize.first: failed")


def test_a_crash_loop_ends_with_its_reason(lab, before_dpo, cluster):
    lab.rounds("run", RECIPE, "--cluster", cluster, "--store", before_dpo)
    dpo = only(before_dpo, "dpo")
    job = lab.job(dpo)
    counted = dpo / "slurm" / "restarts"
    for restart in range(3):
        wait_until(lambda n=restart: counted.exists() and counted.read_text() == f"{n} none\n", "its script does not begin")
        lab.call("scontrol", "requeue", job)
    wait_until(lambda: not lab.queued(), "it goes on for ever")
    assert "restarted 2 times in a row without a new checkpoint" in lab.rounds("status", RECIPE, "--store", before_dpo)


def test_behind_a_gate_that_stops_jobs_end_as_skipped_and_the_report_comes(lab, evaluated, tmp_path):
    cluster, store = short(tmp_path), shutil.copytree(evaluated, tmp_path / "store")
    stop = ["--set", "rounds.first.gate={rules: [{metric: facts/acc, at_least: 1.0}], on_reject: stop, too_few: reject}"]
    told = lab.rounds("run", EVALUATED, *stop, "--cluster", cluster, "--store", store)
    assert {"gate.first", "dpo.second", "evaluate.second", "report"} <= submitted(told)
    wait_until(lambda: not lab.queued(), lambda: lab.rounds("status", EVALUATED, *stop, "--store", store))
    status = lab.rounds("status", EVALUATED, *stop, "--store", store)
    rows = {words[0]: line for line in status.splitlines() if (words := line.split())}
    assert "skipped" in rows["dpo.second"] and "skipped" in rows["evaluate.second"] and "gate" in rows["dpo.second"]
    assert "done" in rows["report"] and "failed" not in status and "to go on" not in status
    folder = next(path.parent for path in store.glob("dpo-*/done.json") if "skipped" in path.read_text())
    assert lab.state(lab.job(folder)) == "COMPLETED"


def test_an_ablation_of_which_one_variant_fails_still_ends_with_a_page_that_says_so(lab, evaluated, tmp_path):
    cluster, store = short(tmp_path), shutil.copytree(evaluated, tmp_path / "store")
    cluster.write_text(f"{cluster.read_text()}preflight: true\n")
    file = tmp_path / "an ablation's.yaml"
    file.write_text(
        f"name: live\nbase: {EVALUATED}\nbaseline: both\nevery: {{set: {{gate: null}}}}\n"
        "variants: {both: {}, sft-only: {rounds: []}, broken: {set: {rounds.second.max_length: 8}}}\n"
    )
    ablate = ["ablate", file, "--set", "description=it's $(one)", "--cluster", cluster, "--store", store]
    told = lab.rounds(*ablate, "--jobs", "1")
    assert {"report", "preflight.cpu", "preflight.train"} <= submitted(told) and len(submitted(told)) < 11
    edited, busy = file.rename(tmp_path / "edited.yaml"), set[int]()  # what was submitted is what is compared

    def over() -> bool:
        states = lab.call("squeue", "-h", "-o", "%T").split()
        busy.add(states.count("RUNNING"))
        return not states

    wait_until(over, lambda: lab.rounds("status", *ablate[1:4], "--store", store))
    assert max(busy) == 1
    edited.rename(file)
    status = lab.rounds("status", *ablate[1:4], "--store", store)
    assert "tokenize.second@broken: failed: no pair is left to train on" in status
    assert "report: failed: compared without broken: " in status
    assert "to go on: rounds ablate " in status  # `rounds run` refuses an ablation
    (page,) = store.glob("ablation_report-*/ablation.html")
    assert "sft-only" in page.read_text() and "broken" in page.read_text()


def test_a_check_that_fails_is_the_cause_of_all_that_waited_for_it(lab, before_dpo, tmp_path):
    cluster = short(tmp_path)
    cluster.write_text(f"{cluster.read_text()}preflight: true\n".replace("train: {", "train: {device: cuda, "))
    lab.rounds("run", RECIPE, "--cluster", cluster, "--store", before_dpo)
    wait_until(lambda: not lab.queued(), "what waits for a check that failed stays")
    status = " ".join(lab.rounds("status", RECIPE, "--store", before_dpo).split())
    assert status.count("behind preflight.train") == 3 and "dpo.first: cancelled" not in status
    assert "torch sees no GPU" in lab.rounds("logs", RECIPE, "preflight.train", "--store", before_dpo)
    lab.rounds("run", RECIPE, "--cluster", cluster, "--store", before_dpo)
    assert "still queued" not in lab.rounds("cancel", RECIPE, "--store", before_dpo)


def test_a_node_without_python_is_named_and_no_other_is_blamed(lab, before_dpo, cluster, tmp_path):
    cluster, python = Path(shutil.copy(cluster, tmp_path)), tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$SLURMD_NODENAME" != {lab.nodes[1]} ] || exec /nowhere/python\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with cluster.open("a") as file:
        file.write(f"  preflight.train: {{slurm: {{environment: {{python: {python}}}}}}}\npreflight: true\n")
    lab.rounds("run", RECIPE, "--cluster", cluster, "--store", before_dpo)
    wait_until(lambda: not lab.queued(), "what waits for a check that failed stays")
    status = " ".join(lab.rounds("status", RECIPE, "--store", before_dpo).split())
    assert f"preflight.train: failed: a process on {lab.nodes[1]} ended first, with exit code 127" in status
    assert ("/nowhere/python" in status or "found no such program" in status) and "memory" not in status


def test_a_stage_that_needs_more_memory_than_its_job_has_is_called_out_of_memory(lab, before_dpo, tmp_path):
    if not lab.holds_memory:
        pytest.skip("no cgroup v1 for memory here, or not root: SLURM cannot hold a job to its memory")
    cluster = short(tmp_path)
    with cluster.open("a") as file:
        file.write("stages: {dpo.*: {slurm: {memory: 150M}}}\n")
    lab.rounds("run", RECIPE, "--cluster", cluster, "--store", before_dpo)
    wait_until(lambda: not lab.queued(), "a stage that was killed keeps others waiting")
    status = lab.rounds("status", RECIPE, "--store", before_dpo)
    assert "dpo.first: out of memory: raise `memory` in the cluster file" in status
    assert lab.restarts(lab.job(only(before_dpo, "dpo"))) == 0 and "behind dpo.first" in status
    lab.stop_controller()
    try:
        without = lab.rounds("status", RECIPE, "--store", before_dpo)
    finally:
        lab.mend()
    assert "dpo.first" in without and without.count("SLURM does not answer") == 1


def test_a_stage_stopped_where_requeue_is_false_says_what_goes_on(lab, before_dpo, tmp_path):
    cluster = short(tmp_path)
    with cluster.open("a") as file:
        file.write("stages: {dpo.*: {slurm: {partition: lowgrace, requeue: false}}}\n")
    run = ["run", RECIPE, "--cluster", cluster, "--store", before_dpo]
    lab.rounds(*run)
    wait_for_step(only(before_dpo, "dpo"), 5)
    high = lab.fill()
    wait_until(lambda: lab.queued() == {high}, "nothing was preempted")
    lab.call("scancel", high)
    status = lab.rounds("status", RECIPE, "--store", before_dpo)
    assert "dpo.first: preempted: stopped, and the cluster file says requeue: false: the same command goes on" in status
    assert f"to go on: rounds run {RECIPE} --cluster " in status


def test_a_submission_that_is_killed_goes_on_without_a_second_job_for_any_stage(lab, tmp_path):
    filler, store = lab.fill(), tmp_path / "store"
    run = ["run", RECIPE, "--cluster", short(tmp_path), "--store", store]
    command = command_line.start(*run, environment=lab.variables)
    wait_until(lambda: len(list(store.glob("*/slurm/job.json"))) >= 3, "nothing was submitted", 0.002)
    command.kill()
    command.communicate()
    time.sleep(1)  # an sbatch of its may outlive it
    before = lab.queued() - {filler}
    told = lab.rounds(*run)
    comments = lab.call("squeue", "-h", "-o", "%i %k").splitlines()
    marks = dict(line.split() for line in comments if "rounds:" in line)
    noted = {json.loads(path.read_text())["id"] for path in store.glob("*/slurm/job.json")}
    assert len(set(marks.values())) == len(marks) and set(marks) == noted
    assert 3 <= len(before) < len(marks) and before < set(marks)
    assert len(submitted(told)) == len(marks) - len(before)
    lab.rounds("cancel", RECIPE, "--store", store)
    lab.call("scancel", filler)
    wait_until(lambda: not lab.queued(), "jobs are left")


@pytest.mark.slow
def test_at_the_time_limit_a_stage_that_does_not_train_ends_as_such_and_is_not_started_again(lab, before_dpo, tmp_path):
    cluster = short(tmp_path)
    cluster.write_text(cluster.read_text().replace('"00:10:00"', '"00:02:00", signal_seconds: 55'))
    stage = only(before_dpo, "tokenize")
    (stage / "done.json").unlink()
    with FileLock(stage / "lock"):  # somebody else is at it, so that the job waits, and for too long
        lab.rounds("run", RECIPE, "--cluster", cluster, "--store", before_dpo)
        job = lab.job(stage)
        wait_until(lambda: (stage / "failed.json").exists(), "SLURM's signal did not come")
        assert lab.state(job) == "RUNNING"
        wait_until(lambda: not lab.queued(), "the time limit passed unnoticed")
    status = lab.rounds("status", RECIPE, "--store", before_dpo)
    assert "tokenize.first: time limit: its time was over" in status and lab.state(job) == "TIMEOUT"
    assert lab.restarts(job) == 0 and "behind tokenize.first" in status


@pytest.mark.slow
def test_at_the_time_limit_a_stage_saves_and_goes_on_in_the_next_attempt(lab, before_dpo, cluster, tmp_path):
    longer = ["--set", "rounds.first.num_train_epochs=40"]  # not over before SLURM, which looks every 30 s, has looked
    undisturbed = shutil.copytree(before_dpo, tmp_path / "undisturbed")
    lab.rounds("run", RECIPE, *longer, "--cluster", cluster.with_name("local.yaml"), "--store", undisturbed)
    lab.rounds("run", RECIPE, *longer, "--cluster", cluster, "--store", before_dpo)
    dpo = only(before_dpo, "dpo")
    job = lab.job(dpo)
    wait_for_step(dpo, 5)
    taken = sum(60**place * int(part) for place, part in enumerate(reversed(lab.call("squeue", "-h", "-j", job, "-o", "%M").split(":"))))
    minutes = -(-(taken + 35) // 60)  # at least one look of SLURM's before the end, and soon no more than `signal_seconds`
    lab.call("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    wait_until(lambda: lab.restarts(job) == 1, lambda: f"the time limit passed unnoticed: {lab.state(job)}")
    lab.call("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    wait_until(lambda: not lab.queued(), "it does not end")
    assert "again: time limit" in (dpo / "slurm" / f"{job}.txt").read_text()
    assert weights(dpo) == weights(only(undisturbed, "dpo"))
