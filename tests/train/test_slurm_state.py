"""Why a job ended, told from SLURM's word and from what its script printed; lanes; and the log that tells most."""

import json

import pytest

from train.graph import Stage
from train.launch import slurm, state
from train.launch.queue import Job


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
        ("UNKNOWN", "", "ended", "no longer knows job 7"),
    ],
)
def test_the_end_of_a_job_is_named_with_what_to_do(tmp_path, word, printed, expected, advice):
    (tmp_path / "slurm").mkdir()
    if printed is not None:
        (tmp_path / "slurm" / "7.txt").write_text(printed + "\n")
    found, job, because = state.ended(Job("7", word), tmp_path)
    assert (found, job.id) == (expected, "7") and advice in because


def test_the_right_log_is_that_of_the_rank_that_failed(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "log.txt").write_text("rank 0\n")
    other = tmp_path / "logs" / "rank-3.txt"
    other.write_text("out of memory\n")
    assert state.right_log(tmp_path) == tmp_path / "log.txt"
    (tmp_path / "failed.json").write_text(json.dumps({"message": "m", "log": str(other)}))
    assert state.right_log(tmp_path) == other
    assert state.last_lines(other, 5) == ["out of memory"] and state.last_lines(tmp_path / "none", 5) == []


def test_a_job_waits_only_for_parents_that_no_other_parent_waits_for():
    a = Stage("a", "source", {"n": 1})
    b = Stage("b", "data", {}, {"a": a})
    c = Stage("c", "report", {}, {"a": a, "b": b})
    chain = slurm.Chain()
    for stage, job in ((a, "1"), (b, "2")):
        chain.note(stage.key, job, chain.needs(stage))
    assert chain.needs(b) == ("1",) and chain.needs(c) == ("2",)


def test_lanes_bound_what_runs_at_once_and_children_follow_their_parents():
    chain = slurm.Chain()
    behind = {}
    for job, parents in (("1", ()), ("2", ()), ("3", ("1",)), ("4", ()), ("5", ("3",))):
        behind[job] = chain.lane(parents, lanes=2)
        chain.take_lane(job, job, behind[job])
    assert behind == {"1": [], "2": [], "3": ["1"], "4": ["2"], "5": ["3"]}
