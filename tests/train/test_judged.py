"""A small run whose round is compared with SFT by judges: a gate that asks for a win refuses a policy that shows none."""

import csv
import json
from pathlib import Path

import yaml

from tests.train import command_line
from tests.train.conftest import MINI, MINI_CLUSTER

RULES = [{"metric": "med/winrate", "at_least": 0.5, "beyond": 2}, {"metric": "length/winrate_lc", "at_least": 0.2}]


def recipe(folder: Path) -> Path:
    """The small recipe with one round, and two comparisons in place of what it measures."""
    made = yaml.safe_load(MINI.read_text())
    made["sources"] |= {name: {**made["sources"][name], "max_rows": 40} for name in ("facts", "pairs_1", "facts_heldout")}
    answers = [{"name": "asked", "source": "facts_heldout", "max_new_tokens": 8}]
    judged = [{"name": "med", "answers": "asked", "by": "right"}, {"name": "length", "answers": "asked", "by": "longer", "against": "sft"}]
    judges = {"right": {"kind": "verifiable", "match": "exact"}, "longer": {"kind": "rule", "rule": "longer"}}
    made |= {"rounds": made["rounds"][:1], "judges": judges, "evaluate": {"answers": answers, "judged": judged}, "gate": {"rules": RULES}}
    (folder / "judged.yaml").write_text(yaml.safe_dump(made))
    return folder / "judged.yaml"


def test_a_gate_refuses_what_no_judge_prefers_and_the_report_says_by_whom(tmp_path: Path):
    command = ("run", recipe(tmp_path), "--cluster", MINI_CLUSTER, "--store", tmp_path / "store")
    output = command_line.here(*command, environment={"COLUMNS": "200"})
    assert "gate.first: rejected" in output and "(the policy after sft)" in output
    assert "judge.first.med" in output and "wins 0.500 over sft" in output
    folders = {path.name.partition("-")[0]: path for path in (tmp_path / "store").iterdir() if (path / "done.json").is_file()}
    decision = json.loads((folders["gate"] / "decision.json").read_text())
    med, length = decision["rules"]
    assert (decision["decision"], med["holds"], length["holds"]) == ("rejected", False, True)
    assert "over the answers of sft (standard error 0.0" in med["says"] and "at least 0.5, passed by 2 standard errors" in med["says"]
    rows = list(csv.reader((folders["report"] / "scores.csv").open()))
    assert [row[:2] for row in rows if "winrate" in row[1]] == [
        ["first", f"{name}/{metric}"] for name in ("med", "length") for metric in ("winrate", "winrate_lc")
    ]
    page = (folders["report"] / "report.html").read_text()
    assert "Whose answers judges prefer" in page and "never of fitness for clinical use" in page
    assert "by right (verifiable: exact), over asked" in page and "against sft: no difference beyond noise" in page
    told = json.loads(command_line.here(*command, "--json"))
    assert told["rejected"] and told["scores"]["first"]["med/winrate"]["value"] == 0.5
