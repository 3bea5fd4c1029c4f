"""Batch scripts: golden texts, what a cluster file may say, and that nothing in a name or a path becomes a command.

`python -m tests.train.launch.test_script` writes the golden files anew; look at the difference before committing it.

Covers: train/config/slurm, train/engine/templates.
"""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from rounds.data_prep.errors import UserError
from rounds.train.config import cluster
from rounds.train.config.cluster import Cluster
from rounds.train.config.slurm import Resources
from rounds.train.engine.graph import Stage
from rounds.train.launch import script
from tests import staged

GOLDEN = Path(__file__).parent / "golden"
RECIPES = Path(__file__).resolve().parents[3] / "recipes" / "clusters"
DPO = staged.stage("dpo.second", "dpo", {"beta": 0.1})
EVALUATE = staged.stage("evaluate.base", "evaluate", {})
ANSWERS = staged.stage("answers.second", "answers", {})
SOURCE = staged.stage("source.notes", "source", {})
PYTHON = {"environment": {"python": "/venv/bin/python"}}
EVERYTHING = {
    "nodes": 6,
    "processes": 8,
    "slurm": {
        "partition": "h100,preempt", "account": "clinical", "qos": "high", "gpus": 8, "gpu_type": "h100", "cpus": 96, "memory": 0,
        "time": "2-00:00:00", "constraint": "ib&h100", "exclusive": True, "signal_seconds": 900, "scratch": "$SLURM_TMPDIR/rounds",
        "extra": ["--mail-type=END", "--reservation=night"],
        "environment": {"modules": ["cuda/12.8"], "conda": "rounds", "variables": {"NCCL_SOCKET_IFNAME": "^lo,docker 0"}},
    },
}  # fmt: skip
CASES: dict[str, tuple[Stage, dict]] = {
    "source": (SOURCE, {"slurm": {"partition": "cpu", "requeue": False, **PYTHON}}),
    "evaluate": (EVALUATE, {"slurm": {"gpus": 1, "gpu_request": "gpus-per-task", **PYTHON}}),
    "answers_two_nodes": (ANSWERS, {"nodes": 2, "processes": 8, "slurm": {"gpus": 8, **PYTHON}}),
    "answers": (ANSWERS, {"slurm": {"gpus": 1, **PYTHON}}),
    "dpo_six_nodes": (DPO, EVERYTHING),
    "dpo_pyxis": (
        DPO,
        {"nodes": 2, "processes": 4, "slurm": {"gpus": 4, "gpu_request": "gpus-per-node", "environment": {
            "inherit": False, "container": {"kind": "pyxis", "image": "nvcr.io#nvidia/pytorch:25.06-py3", "mounts": ["/data:/data:ro"]}}}},
    ),
    "dpo_apptainer": (
        DPO,
        {"processes": 2, "slurm": {"gpus": 2, "environment": {
            "venv": None, "container": {"kind": "apptainer", "image": "/images/rounds.sif", "mounts": ["/models"]}}}},
    ),
}  # fmt: skip


def rendered(name: str) -> str:
    """Render one of the golden cases."""
    stage, row = CASES[name]
    made = Cluster.model_validate({"kind": "slurm", stage.row: row})
    return script.render("med42", stage, Path("/fsx/store/stage-0123456789abcdef"), made.machine(stage.row, stage.name), {})


@pytest.mark.parametrize("name", CASES)
def test_scripts_are_as_they_were_agreed_on(name):
    assert rendered(name) == (GOLDEN / f"{name}.sh").read_text()


@pytest.mark.parametrize("name", CASES)
def test_bash_reads_every_script_and_no_shell_is_needed_for_its_sbatch_lines(name, tmp_path):
    path = tmp_path / "job.sh"
    path.write_text(rendered(name))
    subprocess.run(["bash", "-n", path], check=True)
    lines = path.read_text().splitlines()
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert options and not any(mark in line for line in options for mark in ("$", "`"))
    assert lines.index("set -euo pipefail") == lines.index(options[-1]) + 1


def test_the_node_rank_is_read_on_each_node():
    text = rendered("dpo_six_nodes")
    inside = text[text.index("bash -euc '") :].split("'")[1]
    assert '--node-rank="$SLURM_NODEID"' in inside and "--nproc-per-node=8" in inside
    assert 'scontrol show hostnames "$SLURM_JOB_NODELIST"' in text and "SLURM_JOB_ID" in text[text.index("PORT=") :]


HOSTILE = "a b'c\"d$(touch PWNED)`touch PWNED`;touch PWNED\n#SBATCH --uid=0\n&& touch PWNED"


def test_names_and_paths_never_become_commands(tmp_path):
    stage = staged.stage(f"dpo.{HOSTILE}", "dpo", {})
    folder = tmp_path / "a b'c$(touch PWNED)`touch PWNED`;touch PWNED && 5%" / "dpo-0123456789abcdef"
    machine = Cluster.model_validate({"kind": "slurm", "train": {"slurm": PYTHON}}).machine("train")
    text = script.render(HOSTILE, stage, folder, machine, {})
    options = text.split("set -euo")[0].splitlines()[1:]
    assert not any(line.startswith("#SBATCH --uid") for line in options) and all(line.startswith("#") for line in options)
    # Everything up to the first command that needs SLURM, in a real shell, with the folder in place.
    (folder / "slurm").mkdir(parents=True)
    body = text[text.index("set -euo") : text.index("srun ")] + 'printf %s "$STAGE" >"$STAGE/seen"\n'
    subprocess.run(["bash", "-c", body], check=True, cwd=tmp_path, env={**os.environ, "SLURM_JOB_ID": "7"})
    assert (folder / "seen").read_text() == str(folder)
    assert not list(tmp_path.rglob("PWNED"))


@pytest.mark.parametrize(
    ("slurm", "complaint"),
    [
        ({"partition": "gpu; rm -rf /"}, "partition"),
        ({"account": "a\n#SBATCH --uid=0"}, "account"),
        ({"time": 86400}, "in quotes"),
        ({"time": "24h"}, "train.slurm.time: found '24h': expected \"HH:MM:SS\""),
        ({"memory": "64 GB"}, "train.slurm.memory: found '64 GB': expected a whole number with K, M, G or T"),
        ({"memory": 64}, "such as 64G"),
        ({"extra": ["--mail-type=END\n--uid=0"]}, "line break"),
        ({"extra": ["-p gpu"]}, "long option"),
        ({"extra": ["--output=$HOME/x"]}, "no variables"),
        ({"extra": ["--dependency=singleton"]}, "set by Rounds"),
        ({"extra": ["--partition=gpu"]}, "use the field for it"),
        ({"extra": ["--depen=singleton"]}, "--dependency is set by Rounds"),  # getopt takes any unique beginning
        ({"extra": ["--mail-user=a --uid=0"]}, "without spaces"),
        ({"constraint": "$(id)"}, "constraint"),
        ({"scratch": "$(mktemp)"}, "scratch"),
        ({"environment": {"venv": "venv"}}, "absolute path"),
        ({"environment": {"modules": ["cuda; id"]}}, "modules"),
        ({"environment": {"variables": {"HF_TOKEN": "hf_x"}}}, "looks like a secret"),
        *[
            ({"environment": {"variables": {name: "x"}}}, "looks like a secret")
            for name in ("WANDB_API_KEY", "MY_APIKEY", "HFTOKEN", "PROXY_AUTH", "AWS_SECRET", "DB_PASSWORD")
        ],
        ({"environment": {"variables": {"A-B": "x"}}}, "no name of an environment variable"),
        ({"environment": {"container": {"kind": "docker", "image": "x"}}}, "apptainer"),
        ({"gpus": 4}, "8 processes per node for 4 GPUs"),
        ({"gpu_type": "h100"}, "without gpus"),
        ({"gpus": 8, "time": "00:05:00"}, "leaves no work"),
        ({"gpus": 8, "partitions": "gpu"}, "did you mean 'partition'"),
        (
            {"gpus": 8, "scratch": "$TMPDIR", "environment": {"container": {"kind": "pyxis", "image": "x"}}},
            "absolute path",
        ),
        (
            {"gpus": 8, "environment": {"venv": "/v", "container": {"kind": "pyxis", "image": "x"}}},
            "brings its own Python",
        ),
    ],
)
def test_mistakes_in_a_cluster_file_are_told_at_once(slurm, complaint, tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"kind": "slurm", "train": {"processes": 8, "slurm": slurm}}))
    with pytest.raises(UserError) as told:
        cluster.load(path)
    assert complaint in str(told.value) and "cluster.yaml" in str(told.value)


def test_a_mistake_in_what_every_job_gets_is_told_with_its_fields(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("kind: slurm\nslurm: {acount: lab}\ntrain: {processes: 1}\n")
    with pytest.raises(UserError, match="did you mean 'account'"):
        cluster.load(path)


def test_settings_that_only_sound_like_secrets_are_let_through():
    variables = {"TOKENIZERS_PARALLELISM": "false", "NCCL_IB_PKEY": "0x1", "MAX_TOKENS": "5", "PYTHONHASHSEED": "0"}
    assert Resources.model_validate({"environment": {"variables": variables}}).environment.variables == variables


def test_a_local_file_that_asks_for_slurm_is_a_mistake(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("train: {slurm: {gpus: 8}}\n")
    with pytest.raises(UserError, match="say kind: slurm"):
        cluster.load(path)


def test_what_only_training_can_be_spread_over_is_refused_elsewhere(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("kind: slurm\ninfer: {processes: 8, slurm: {gpus: 8}}\n")
    with pytest.raises(UserError, match=r"cluster.yaml:2: infer.processes: only stages .* device_map: auto"):
        cluster.load(path)


def test_a_stage_states_only_what_differs(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(
        """
kind: slurm
slurm: {account: ours, environment: {modules: [cuda/12.8], variables: {A: "1"}}}
train: {micro_batch_size: 2, slurm: {gpus: 8, time: "24:00:00"}}
stages:
  "dpo.*": {slurm: {time: "12:00:00"}}
  dpo.third: {micro_batch_size: 1, slurm: {environment: {modules: [cuda/13.0]}}}
"""
    )
    made = cluster.load(path)
    first, third = made.machine("train", "dpo.first"), made.machine("train", "dpo.third")
    assert (first.slurm.account, first.slurm.gpus, first.slurm.time, first.micro_batch_size) == (
        "ours",
        8,
        "12:00:00",
        2,
    )
    assert (third.slurm.time, third.micro_batch_size) == ("12:00:00", 1)
    assert third.slurm.environment.modules == ("cuda/13.0",) and third.slurm.environment.variables == {"A": "1"}
    assert made.machine("train", "sft").slurm.time == "24:00:00" and made.machine("cpu", "source.x").slurm.gpus == 0


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_cluster_file_of_the_project_is_valid(path):
    made = cluster.load(path)
    if made.kind == "slurm":
        for stage in (SOURCE, EVALUATE, DPO):
            assert script.render("any", stage, Path("/fsx/store/x-1"), made.machine(stage.row, stage.name), {}).startswith("#!/bin/bash")


if __name__ == "__main__":
    for case in CASES:
        (GOLDEN / f"{case}.sh").write_text(rendered(case))
