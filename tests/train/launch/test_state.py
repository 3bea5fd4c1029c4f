"""Why a job ended, told from SLURM's word and from what its script printed; lanes; and the log that tells most.

Covers: train/launch/queue, train/launch/submission.
"""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rounds.train import cli
from rounds.train.config import recipe
from rounds.train.engine import store
from rounds.train.engine.graph import Stage
from rounds.train.launch import slurm, state
from rounds.train.launch.queue import Job
from rounds.train.plan import pipeline
from tests import staged

TORCHRUN = """
  host      : gpu-07
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 28019)
"""


@pytest.mark.parametrize(
    ("word", "printed", "expected", "advice"),
    [
        ("TIMEOUT", "", "time limit", "raise `time`"),
        ("OUT_OF_MEMORY", "", "out of memory", "raise `memory`"),
        ("FAILED", "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0", "out of memory", "raise `memory`"),
        ("NODE_FAIL", "", "node failed", "not requeued"),
        ("CANCELLED", "srun: started", "cancelled", "by scancel"),
        ("CANCELLED", None, "cancelled", "before it began"),
        ("FAILED", "ModuleNotFoundError: No module named 'train'", "failed", "without finishing"),
        (
            "FAILED",
            "srun: error: gpu-07: task 0: Killed",
            "failed",
            "a process on gpu-07 was ended by a signal: Killed (out of memory",
        ),
        ("FAILED", TORCHRUN, "failed", "rank 1 on gpu-07 (process 28019) was ended by signal 9 (killed; out of memory"),
        ("UNKNOWN", "", "ended", "no longer knows job 7"),
        (
            "FAILED",
            "-- attempt 0 of job 7 --\n1 oom_kill event\n-- attempt 1 of job 7 --\nno module",
            "failed",
            "without",
        ),
        ("FAILED", "-- attempt 0 of job 7 --\n-- attempt 1 of job 7 --\n1 oom_kill event", "out of memory", "raise"),
    ],
)
def test_the_end_of_a_job_is_named_with_what_to_do(tmp_path, word, printed, expected, advice):
    (tmp_path / "slurm").mkdir()
    if printed is not None:
        (tmp_path / "slurm" / "7.txt").write_text(printed + "\n")
    found, job, because = state.ended(Job("7", word), tmp_path)
    assert (found, job.id) == (expected, "7") and advice in because


def test_what_the_batch_script_says_of_the_time_limit_is_the_state(tmp_path):
    stage = staged.stage("evaluate", "evaluate", {})
    folder = store.prepare(tmp_path, stage)
    store.write_json(folder / "failed.json", {"message": "too short", "state": "time limit", "user_error": True})
    (found,) = state.states([stage], tmp_path)
    assert (found.state, found.because) == ("time limit", "too short")


def test_the_right_log_is_that_of_the_rank_that_failed(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "log.txt").write_text("rank 0\n")
    other = tmp_path / "logs" / "rank-3.txt"
    other.write_text("out of memory\n")
    assert state.right_log(tmp_path) == tmp_path / "log.txt"
    (tmp_path / "failed.json").write_text(json.dumps({"message": "m", "log": str(other)}))
    assert state.right_log(tmp_path) == other
    assert state.last_lines(other, 5) == ["out of memory"] and state.last_lines(tmp_path / "none", 5) == []


def test_a_stage_that_was_given_up_is_told_with_what_ended_its_attempts(tmp_path, monkeypatch):
    stage = staged.stage("dpo.first", "dpo", {})
    folder = store.prepare(tmp_path, stage)
    (folder / "slurm").mkdir()
    (folder / "log.txt").write_text("step 3\n")
    printed = folder / "slurm" / "7.txt"
    printed.write_text(f"-- attempt 0 of job 7 --\n{TORCHRUN}-- attempt 1 of job 7 --\n")
    store.write_json(folder / "slurm" / "job.json", {"id": "7", "runs": []})
    store.write_json(folder / "failed.json", {"message": "restarted once", "state": "failed", "user_error": True})
    monkeypatch.setenv("PATH", "")  # no SLURM answers: the folder alone tells
    (found,) = state.states([stage], tmp_path)
    assert found.because.startswith("restarted once. Before that rank 1 on gpu-07 (process 28019) was ended by signal 9")
    assert state.right_log(folder) == printed


def test_logs_and_status_point_to_what_tells_most_and_to_how_to_go_on(tmp_path, monkeypatch):
    file = Path(__file__).parents[1] / "mini_slurm.yaml"
    folder = store.prepare(tmp_path, pipeline.build_plan(recipe.load(file), tmp_path, file.parent).stage("dpo.first"))
    (folder / "slurm").mkdir()
    printed = folder / "slurm" / "7.txt"
    printed.write_text("venv/bin/activate: No such file or directory\n")
    store.write_json(folder / "failed.json", {"message": "restarted once", "state": "failed", "user_error": True})
    monkeypatch.setenv("PATH", "")  # no SLURM answers: the folder alone tells
    command = ["logs", str(file), "dpo.first", "--store", str(tmp_path)]
    none = CliRunner().invoke(cli.app, command)
    assert none.exit_code == 1 and str(printed) in none.output and "failed: restarted once" in none.output
    (folder / "log.txt").write_text("step 3\n")
    some = CliRunner().invoke(cli.app, command)
    assert some.exit_code == 0 and "step 3" in some.output and str(printed) in some.output
    assert CliRunner().invoke(cli.app, [*command, "--batch"]).output == printed.read_text()

    cluster = tmp_path / "my cluster.yaml"
    cluster.write_text("kind: slurm\n")
    submitted = {
        "id": "7",
        "runs": [],
        "recipe": str(file),
        "cluster": str(cluster),
        "submitted": 1.0,
        "more": ["--offline", "/f"],
    }
    store.write_json(folder / "slurm" / "job.json", submitted)
    status = CliRunner().invoke(cli.app, ["status", str(file), "--store", str(tmp_path)])
    none = CliRunner().invoke(cli.app, ["status", str(file), "--store", str(tmp_path / "none")])
    assert "nothing of this run is in the store" in none.output and not (tmp_path / "none").exists()
    assert f"to go on: rounds run {file} --offline /f --cluster '{cluster}' --store" in status.output


def test_a_job_waits_only_for_parents_that_no_other_parent_waits_for():
    a = staged.stage("a", "source", {"n": 1})
    b = staged.stage("b", "data", {}, {"a": a})
    c = staged.stage("c", "report", {}, {"a": a, "b": b})
    chain = slurm.Chain()
    for stage, job in ((a, "1"), (b, "2")):
        chain.note(stage.key, job, chain.needs(stage))
    assert chain.needs(b) == ("1",) and chain.needs(c) == ("2",)


def test_lanes_bound_what_runs_at_once_and_children_follow_their_parents():
    chain = slurm.Chain(bound=2)
    behind = {}
    for job, parents in (("1", ()), ("2", ()), ("3", ("1",)), ("4", ()), ("5", ("3",))):
        behind[job] = chain.behind(parents)
        chain.take_lane(job, behind[job])
    assert behind == {"1": [], "2": [], "3": ["1"], "4": ["2"], "5": ["1", "3"]}


@pytest.mark.parametrize("bound", [1, 2, 3])
@pytest.mark.parametrize("checks", [0, 3])
@pytest.mark.parametrize("queued", [0, 1, 4])
@pytest.mark.parametrize("lost", ["", "s0", "s3"])
def test_no_more_jobs_run_at_once_than_there_are_lanes(bound, checks, queued, lost):
    """Jobs are run as SLURM would, all that may at once; a `lost` one never ends well, so what needs it is cancelled at once."""
    chain = slurm.Chain()
    ends_well: dict[str, set[str]] = {}
    ends: dict[str, set[str]] = {}

    def add(stage: Stage) -> None:
        waits_for = chain.needs(stage)
        behind = chain.behind(waits_for)
        ends_well[stage.name] = set(waits_for)
        ends[stage.name] = set(behind) - set(waits_for)
        chain.note(stage.key, stage.name, waits_for)
        chain.take_lane(stage.name, behind)

    for number in range(queued):  # of an earlier submission, with more lanes
        add(staged.stage(f"q{number}", "source", {"n": number}))
    chain.bound = bound
    chain.narrow()
    of_queue = [staged.stage(f"c{number}", "data", {}, {"q": staged.stage("", "source", {"n": number})}) for number in range(queued)]
    for number in range(checks):
        add(staged.stage(f"check{number}", "preflight", {"n": number}))
    chain.checks = [job for job in ends if job.startswith("check")]
    roots = [staged.stage(f"s{number}", "sft", {"n": number}) for number in range(6)]
    pairs = [staged.stage(f"p{a}{b}", "dpo", {}, {"a": roots[a], "b": roots[b]}) for a, b in ((0, 1), (3, 4), (0, 5), (2, 3))]
    for stage in (
        *of_queue,
        *roots,
        *pairs,
        *[staged.stage(f"e{pair.name}", "evaluate", {}, {"policy": pair}) for pair in pairs],
    ):
        add(stage)

    well: set[str] = set()
    over: set[str] = set()
    running: set[str] = set()
    most = 0
    while len(over) < len(ends):
        while doomed := {job for job in ends if job not in over | running and ends_well[job] & (over - well)}:
            over |= doomed
        running |= {job for job in ends if job not in over and ends_well[job] <= well and ends[job] <= over}
        most = max(most, len(running) if any(not job.startswith("q") for job in running) else 0)
        if not running:
            break
        ended = lost if lost in running else max(running, key=lambda job: (job[0] in "qs", job))
        running.remove(ended)
        over.add(ended)
        well |= {ended} - {lost}
    assert len(over) == len(ends) and 0 < most <= bound
