"""Judges of a recipe: their files are found beside it, their names are checked, and what they cost is beside the params of a stage."""

from pathlib import Path

import pytest
import yaml

from rounds.data_prep.errors import UserError
from rounds.data_prep.schema import Section
from rounds.train.config import cluster, recipe
from rounds.train.config.judging import Judge, Llm
from rounds.train.engine import kinds, params, store
from rounds.train.engine.graph import Asset, Stage
from rounds.train.offline import needs
from rounds.train.plan import held_out, judges
from rounds.train.plan.rows import Planning
from tests import staged
from tests.train.conftest import MINI

GIVEN = {
    "gold": {"kind": "verifiable", "match": "choice"},
    "own": {"kind": "reward_model", "path": "model", "licence": "MIT"},
    "asked": {"kind": "llm", "model": "m", "endpoint": "judge", "rubric": "rubric.md"},
    "itself": {"kind": "llm", "policy": "base", "rubric": "rubric.md"},
}


class Asks(Section):
    judge: Judge


@pytest.fixture
def planning(tmp_path: Path) -> Planning:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rubric.md").write_text("Which answer is kinder?")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**yaml.safe_load(MINI.read_text()), "judges": GIVEN}))
    made = recipe.load(tmp_path / "recipe.yaml")
    return Planning(made, tmp_path / "store", tmp_path, True, held_out.held_out(made))


def test_a_rubric_is_read_as_text_and_a_folder_by_its_content(planning: Planning, tmp_path: Path):
    asked = judges.section(planning, "asked", "here")
    assert isinstance(asked, Llm) and asked.rubric == "Which answer is kinder?"
    own = judges.inputs(planning, "own", {})["judge"]
    assert isinstance(own, Asset) and own.path == tmp_path / "model" and len(own.digest) == 64
    base = staged.stage("base", "base", {})
    assert judges.inputs(planning, "itself", {"base": base}) == {"judge": base}
    assert judges.inputs(planning, "gold", {}) == {}


def test_a_name_that_is_none_s_is_told_with_the_nearest(planning: Planning):
    with pytest.raises(
        UserError, match=r"rounds\.x\.rank\.by: no judge is named 'golf' under `judges` in the recipe. did you mean 'gold'\?"
    ):
        judges.section(planning, "golf", "rounds.x.rank.by")
    with pytest.raises(UserError, match=r"judges\.itself\.policy: no policy is named 'base' where this judge is asked"):
        judges.inputs(planning, "itself", {})


def test_a_row_of_the_cluster_file_brings_its_endpoints(tmp_path: Path):
    file = tmp_path / "cluster.yaml"
    file.write_text("endpoints: {judge: {base_url: 'http://localhost:8000/v1'}}")
    machine = cluster.load(file).machine("cpu", "rank.first")
    assert machine.endpoints["judge"].base_url == "http://localhost:8000/v1" and not machine.offline
    file.write_text("offline: true")
    assert cluster.load(file).machine("cpu", "rank.first").offline


def test_a_judge_of_the_hub_is_fetched_with_its_licence_and_a_policy_that_judges_with_the_base():
    hub = {"kind": "reward_model", "id": "org/judge", "revision": "a" * 40, "licence": "MIT"}
    rank = Stage("rank.own.one", kinds.RANK_MODEL, params.RankParams.model_validate({"judge": hub}))
    (need,) = needs.of([rank])
    assert (need.kind, need.name, need.judge, need.licence, need.stages) == ("model", "org/judge", True, "MIT", ("rank.own.one",))
    base = staged.stage("base", "base", {"base": {"kind": "hub", "id": "org/base", "revision": "b" * 40}, "chat_template": None})
    itself = params.RankParams.model_validate({"judge": {"kind": "llm", "policy": "base", "rubric": "Which?"}})
    (need,) = needs.of([Stage("rank.own.two", kinds.RANK_MODEL, itself, {"judge": base})])
    assert (need.name, need.judge, need.licence) == ("org/base", False, "")


def test_limits_are_kept_beside_the_params_and_change_no_key(planning: Planning, tmp_path: Path):
    asked = judges.section(planning, "asked", "here")
    few, many = (staged.stage("base", "base", {}) for _ in range(2))
    few, many = (Stage("ask", few.kind, Asks(judge=asked.model_copy(update={"max_calls": most}))) for most in (1, 2))
    assert few.key == many.key
    for each, most in ((few, 1), (many, 2)):
        folder = store.prepare(tmp_path / "store", each)
        spec = store.spec(folder)
        assert spec.beside["judge"]["max_calls"] == most and "max_calls" not in spec.params["judge"]
        assert Asks.read_stored(spec.params, spec.beside).judge == each.params.judge  # type: ignore[attr-defined]
