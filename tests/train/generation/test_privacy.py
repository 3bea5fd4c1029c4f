"""What a run's judges may be sent is settled before anything runs, from recipe and cluster file together."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rounds.data_prep.errors import UserError
from rounds.train.config import cluster, recipe
from rounds.train.config.cluster import Cluster
from rounds.train.generation import privacy
from rounds.train.plan.pipeline import Plan, build_plan
from tests.train import command_line
from tests.train.conftest import MINI

AWAY = "https://judge.example.org/v1"
ROUND = {
    "name": "own",
    "sample": {"prompts": "open", "num_answers": 2, "max_new_tokens": 8},
    "rank": {"by": "asked"},
    "data": ["sampled"],
    "max_length": 256,
    "global_batch_size": 4,
    "learning_rate": 1e-4,
}


def written(folder: Path, phi: str = "mask", **judge: Any) -> Path:
    """A recipe whose round asks a judge at an endpoint about answers to prompts of a file of one's own."""
    (folder / "rubric.md").write_text("Which answer is kinder?")
    (folder / "rows.jsonl").write_text("".join(f'{{"id": "{n}", "prompt": "What is {n}?"}}\n' for n in range(9)))
    data = yaml.safe_load(MINI.read_text())
    data["sources"]["mine"] = {"source": "file", "format": "prompt", "path": "rows.jsonl", "licence": "CC0", "phi": phi}
    data |= {"prompts": {"open": {"data": ["mine"]}}, "rounds": [ROUND], "gate": None}
    data["judges"] = {"asked": {"kind": "llm", "model": "m", "endpoint": "judge", "rubric": "rubric.md", **judge}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data))
    return folder / "recipe.yaml"


def plan(folder: Path, phi: str = "mask", **judge: Any) -> Plan:
    return build_plan(recipe.load(written(folder, phi, **judge)), folder / "store", folder)


def machines(folder: Path, **fields: Any) -> Cluster:
    (folder / "cluster.yaml").write_text(yaml.safe_dump(fields))
    return cluster.load(folder / "cluster.yaml")


def test_an_endpoint_stands_in_the_cluster_file(tmp_path: Path):
    made = plan(tmp_path)
    with pytest.raises(UserError, match=r"rank\.own\.asked: the cluster file names no endpoint 'judge' under `endpoints`. It names none"):
        privacy.check_stages(made.stages, Cluster())
    with pytest.raises(UserError, match="did you mean 'jugde'"):
        privacy.check_stages(made.stages, machines(tmp_path, endpoints={"jugde": {"base_url": "http://localhost:1/v1"}}))
    privacy.check_stages(made.stages, machines(tmp_path, endpoints={"judge": {"base_url": "http://localhost:1/v1"}}, offline=True))


def test_another_machine_is_sent_nothing_that_was_not_masked(tmp_path: Path):
    away = {"judge": {"base_url": AWAY, "allow_outside": True}}
    with pytest.raises(UserError, match="set allow_outside: true for this judge in the recipe"):
        privacy.check_stages(plan(tmp_path).stages, machines(tmp_path, endpoints=away))
    allowed = plan(tmp_path, allow_outside=True)
    privacy.check_stages(allowed.stages, machines(tmp_path, endpoints=away))
    with pytest.raises(UserError, match="says offline: true"):
        privacy.check_stages(allowed.stages, machines(tmp_path, endpoints=away, offline=True))
    bare = plan(tmp_path, "off", allow_outside=True)
    with pytest.raises(UserError, match=r"rank\.own\.asked: endpoint judge is another machine, and .* not masked in mine"):
        privacy.check_stages(bare.stages, machines(tmp_path, endpoints=away))
    privacy.check_stages(bare.stages, machines(tmp_path, endpoints={"judge": {"base_url": "http://127.0.0.1:1/v1"}}))


def test_a_run_and_a_plan_with_a_cluster_file_are_refused_and_a_plan_alone_is_not(tmp_path: Path):
    file = written(tmp_path, allow_outside=True)
    machines(tmp_path, endpoints={"judge": {"base_url": AWAY}})
    place = {"ROUNDS_STORE": str(tmp_path / "store"), "COLUMNS": "200"}
    for command in (("run", file), ("plan", file)):
        shown = command_line.here(*command, "--cluster", tmp_path / "cluster.yaml", expect=1, environment=place)
        assert "is another machine" in shown and "for this endpoint in the cluster file" in shown
    assert "up to 2 calls" not in command_line.here("plan", file, environment=place)


def test_nor_are_held_out_rows_that_two_policies_answers_are_compared_on(tmp_path: Path):
    data = yaml.safe_load(written(tmp_path, "off", allow_outside=True).read_text())
    data |= {"prompts": {}, "rounds": yaml.safe_load(MINI.read_text())["rounds"]}
    data["evaluate"]["answers"] = [{"name": "own", "source": "mine", "max_new_tokens": 8}]
    data["evaluate"]["judged"] = [{"name": "kind", "answers": "own", "by": "asked"}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    made = build_plan(recipe.load(tmp_path / "recipe.yaml"), tmp_path / "store", tmp_path)
    with pytest.raises(UserError, match=r"judge\.first\.kind: the cluster file names no endpoint 'judge'"):
        privacy.check_stages(made.stages, Cluster())
    with pytest.raises(UserError, match=r"judge\.first\.kind: endpoint judge is another machine, .* was not masked in mine"):
        privacy.check_stages(made.stages, machines(tmp_path, endpoints={"judge": {"base_url": AWAY, "allow_outside": True}}))
