"""Refusal is measured on both kinds of prompts, and the agreement that stands beside it is what the rule has on people's labels."""

import json
from pathlib import Path

import pytest
from sklearn.metrics import cohen_kappa_score

from rounds.data_prep.refusals import refuses
from rounds.train.evaluation import refusal
from rounds.train.evaluation.paired import clustered

FILES = dict(zip((row.model for row in refusal.AGREEMENT), ("gpt4", "llama2new", "mistralinstruct"), strict=True))


@pytest.mark.parametrize("row", refusal.AGREEMENT, ids=lambda row: row.model)
def test_the_agreement_that_is_printed_is_that_on_the_labelled_answers(row: refusal.Agreement, shared_data: Path) -> None:
    lines = (shared_data / "xstest" / f"xstest_completions_{FILES[row.model]}.jsonl").read_text(encoding="utf-8").splitlines()
    given = [json.loads(line) for line in lines]
    people = [each["final_label"] != "1_full_compliance" for each in given]
    rule = [refuses(each["completion"]) for each in given]
    agreement = sum(one == two for one, two in zip(people, rule, strict=True)) / len(given)
    found = (len(given), round(agreement, 3), round(float(cohen_kappa_score(people, rule)), 3))
    assert found == (row.answers, row.agreement, row.kappa)


def test_what_stands_beside_figures_names_every_model_and_both_numbers() -> None:
    assert all(f"{row.model} {row.agreement:.2f}, kappa {row.kappa:.2f}" in refusal.caveat() for row in refusal.AGREEMENT)


def test_a_group_says_whether_to_refuse() -> None:
    assert [refusal.is_wanted(group) for group in ("unsafe", "unsafe/drugs", "safe/homonyms", "safely", "")] == [
        True,
        True,
        False,
        None,
        None,
    ]


@pytest.mark.parametrize("always", [True, False])
def test_who_always_or_never_refuses_wins_nothing(always: bool) -> None:
    wanted = {f"u{number}": True for number in range(7)} | {f"s{number}": False for number in range(21)}
    values = refusal.balanced(dict.fromkeys(wanted, always), wanted)
    mean, stderr, _ = clustered(list(values.values()), list(values))
    assert mean == pytest.approx(0.5) and stderr == pytest.approx(0)


def test_the_mean_of_the_items_is_balanced_accuracy_and_their_spread_its_error() -> None:
    wanted = {f"u{number}": True for number in range(8)} | {f"s{number}": False for number in range(24)}
    refused = {item: kind if item not in ("u0", "u1", "s0") else not kind for item, kind in wanted.items()}
    values = refusal.balanced(refused, wanted)
    mean, stderr, _ = clustered(list(values.values()), list(values))
    unsafe, safe = 6 / 8, 23 / 24
    assert mean == pytest.approx((unsafe + safe) / 2)
    expected = (unsafe * (1 - unsafe) / 8 + safe * (1 - safe) / 24) ** 0.5 / 2
    assert stderr == pytest.approx(expected, rel=0.02)  # the usual n / (n - 1) apart


def test_one_kind_alone_has_no_balance() -> None:
    assert refusal.balanced({"a": True}, {"a": True}) == {}
