"""The pair rules hold over any matrix of scores: no rule is broken by a pair, and no prompt is lost."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rounds.data_prep import records, refusals
from rounds.data_prep.records import Message
from rounds.train.config.judging import PairRules
from rounds.train.generation.samples import Sample
from rounds.train.judging import pairs
from rounds.train.judging.scores import Score
from tests.train.judging.answers import sample, scored

TEXTS = ["Rest.", "rest. ", "Drink water.", "I cannot help with that.", "I'm sorry, but I can't assist.", "See a doctor.", ""]
_SAMPLE = st.builds(sample, st.just(0), st.sampled_from(TEXTS), st.integers(0, 40), st.booleans())
_VALUE = st.one_of(st.none(), st.sampled_from([0.0, 1.0]), st.floats(-5, 5))
ANSWERS = st.lists(st.tuples(_SAMPLE, _VALUE), max_size=9)
RULES = st.builds(
    PairRules,
    rejected=st.sampled_from(["worst", "low", "random"]),
    min_margin=st.sampled_from([0.0, 0.5, 3.0]),
    truncated=st.sampled_from(["never_chosen", "may_lose"]),
    refusals=st.sampled_from(["drop", "keep"]),
    max_length_ratio=st.sampled_from([None, 1.0, 2.0]),
    per_prompt=st.integers(1, 4),
)
ANY = PairRules(max_length_ratio=None)


def of(answers: Sequence[tuple[Sample, float | None]]) -> tuple[list[Sample], list[Score]]:
    return [replace(each, number=number) for number, (each, _) in enumerate(answers)], scored([value for _, value in answers])


def text(each: pairs.Scored) -> str:
    return " ".join(each.sample.answer.casefold().split())


@given(ANSWERS, RULES, st.integers(0, 3))
def test_no_pair_breaks_a_rule_and_each_prompt_has_pairs_or_one_reason(answers, rules, seed):
    samples, scores = of(answers)
    found = pairs.choose(samples, scores, rules, seed)
    if isinstance(found, str):
        assert found in pairs.REASONS
        return
    there = {score.number: score.score for score in scores if score.score is not None}
    first = [number for number in there if not any(same(samples, number, other) for other in there if other < number)]
    assert 1 <= len(found) <= rules.per_prompt
    assert len({chosen.sample.number for chosen, _ in found}) == 1
    assert len({rejected.sample.number for _, rejected in found}) == len(found)
    for chosen, rejected in found:
        assert {chosen.sample.number, rejected.sample.number} <= set(first), "an answer without a score, or said before"
        assert (chosen.score, rejected.score) == (there[chosen.sample.number], there[rejected.sample.number])
        assert chosen.score == max(there[number] for number in first)
        assert chosen.score > rejected.score and chosen.score - rejected.score >= rules.min_margin
        assert text(chosen) != text(rejected)
        assert chosen.sample.ended and (rejected.sample.ended or rules.truncated == "may_lose")
        assert rules.refusals == "keep" or not refusals.refuses(chosen.sample.answer)
        short, long = sorted((chosen.sample.tokens, rejected.sample.tokens))
        assert rules.max_length_ratio is None or long <= rules.max_length_ratio * max(short, 1)


def same(samples: Sequence[Sample], one: int, other: int) -> bool:
    return samples[one].answer.casefold().split() == samples[other].answer.casefold().split()


@given(ANSWERS, RULES, st.integers(0, 3), st.randoms())
def test_the_order_of_the_rows_changes_nothing(answers, rules, seed, draw):
    samples, scores = of(answers)
    expected = pairs.choose(samples, scores, rules, seed)
    draw.shuffle(samples)
    draw.shuffle(scores)
    assert pairs.choose(samples, scores, rules, seed) == expected


@given(ANSWERS, RULES, st.integers(0, 3))
def test_which_rule_says_no_does_not_depend_on_who_would_be_rejected(answers, rules, seed):
    samples, scores = of(answers)
    outcomes = [
        pairs.choose(samples, scores, PairRules.model_validate(rules.model_dump() | {"rejected": rejected}), seed)
        for rejected in ("worst", "low", "random")
    ]
    if any(isinstance(each, str) for each in outcomes):
        assert len(set(map(str, outcomes))) == 1
    else:
        assert len({each[0].chosen.sample.number for each in outcomes if not isinstance(each, str)}) == 1


@given(ANSWERS, RULES, st.integers(0, 3))
def test_a_missing_score_is_as_an_answer_that_is_not_there(answers, rules, seed):
    samples, scores = of(answers)
    there = {score.number for score in scores if score.score is not None}
    expected = pairs.choose(
        [each for each in samples if each.number in there], [each for each in scores if each.number in there], rules, seed
    )
    assert pairs.choose(samples, scores, rules, seed) == expected
    assert pairs.choose(samples, [each for each in scores if each.number in there], rules, seed) == expected, (
        "a row that is not there at all"
    )


@given(st.lists(st.tuples(ANSWERS, RULES), max_size=6))
def test_every_prompt_is_counted_once(many):
    outcomes = [pairs.choose(*of(answers), rules, 0) for answers, rules in many]
    found = pairs.counts(outcomes)
    assert isinstance(found["dropped"], dict) and isinstance(found["prompts_with_pairs"], int)
    assert found["prompts"] == len(many) == found["prompts_with_pairs"] + sum(found["dropped"].values())


@pytest.mark.parametrize(
    ("answers", "rules", "reason"),
    [
        ([(sample(0, "a"), 1.0), (sample(0, "b"), None)], {}, "missing_score"),
        ([], {}, "missing_score"),
        ([(sample(0, "a b"), 1.0), (sample(0, " A  b "), 0.0)], {}, "one_distinct_answer"),
        ([(sample(0, "a"), 1.0), (sample(0, "b"), 1.0)], {}, "all_tied"),
        ([(sample(0, "a"), 1.0), (sample(0, "b"), 0.8)], {"min_margin": 0.5}, "below_margin"),
        ([(sample(0, "a", ended=False), 1.0), (sample(0, "b"), 0.0)], {}, "chosen_truncated"),
        ([(sample(0, "I cannot help with that."), 1.0), (sample(0, "b"), 0.0)], {}, "chosen_refuses"),
        ([(sample(0, "a"), 1.0), (sample(0, "b", ended=False), 0.0)], {}, "rejected_truncated"),
        ([(sample(0, "a", 21), 1.0), (sample(0, "b", 10), 0.0)], {}, "length_ratio"),
        # Two rules would say no: the earlier one does.
        ([(sample(0, "a", ended=False), 1.0), (sample(0, "b"), 0.8)], {"min_margin": 0.5}, "below_margin"),
        ([(sample(0, "I cannot help.", 90, ended=False), 1.0), (sample(0, "b"), 0.0)], {}, "chosen_truncated"),
        ([(sample(0, "I cannot help with that.", 90), 1.0), (sample(0, "b"), 0.0)], {}, "chosen_refuses"),
    ],
)
def test_a_rule_says_no_by_its_name(answers, rules, reason):
    assert pairs.choose(*of(answers), PairRules(**rules), 0) == reason


def numbers(found: list[pairs.Choice] | str) -> list[tuple[int, int]]:
    assert not isinstance(found, str), found
    return [(chosen.sample.number, rejected.sample.number) for chosen, rejected in found]


def test_of_several_best_the_first_that_may_be_chosen_is():
    answers = [
        (sample(0, "a", ended=False), 1.0),
        (sample(0, "I cannot help with that."), 1.0),
        (sample(0, "c"), 1.0),
        (sample(0, "d"), 0.0),
    ]
    assert numbers(pairs.choose(*of(answers), ANY, 0)) == [(2, 3)]
    kept = PairRules(refusals="keep", max_length_ratio=None)
    assert numbers(pairs.choose(*of(answers), kept, 0)) == [(1, 3)]


def test_a_refusal_and_a_truncated_answer_may_be_rejected_where_asked():
    answers = [(sample(0, "a"), 1.0), (sample(0, "b", ended=False), -1.0), (sample(0, "I cannot help with that."), 0.0)]
    assert numbers(pairs.choose(*of(answers), ANY, 0)) == [(0, 2)]
    assert numbers(pairs.choose(*of(answers), PairRules(truncated="may_lose", max_length_ratio=None), 0)) == [(0, 1)]


def test_low_is_two_deviations_below_the_mean_and_the_worst_of_five():
    values = [1.0] * 3 + [0.9] * 12 + [0.2, -6.0]
    answers = [(sample(0, f"answer {number}"), value) for number, value in enumerate(values)]
    low, worst = (PairRules(rejected=each, max_length_ratio=None, per_prompt=2) for each in ("low", "worst"))
    assert numbers(pairs.choose(*of(answers), worst, 0)) == [(0, 16), (0, 15)]
    assert numbers(pairs.choose(*of(answers), low, 0))[0] == (0, 15), "the mean is .4, a deviation 1.6"
    for five in ([5, 4, 3, 2, 1], [1, 1, 1, 1, 0], [9, 0, 0.1, 0.2, 0.3]):
        answers = [(sample(0, f"answer {number}"), float(value)) for number, value in enumerate(five)]
        assert numbers(pairs.choose(*of(answers), low, 0))[0] == numbers(pairs.choose(*of(answers), worst, 0))[0]


def test_random_differs_by_seed_and_by_nothing_else():
    answers = [(sample(0, f"answer {number}"), float(number)) for number in range(6)]
    rules = PairRules(rejected="random", max_length_ratio=None)
    drawn = {seed: numbers(pairs.choose(*of(answers), rules, seed))[0] for seed in range(40)}
    assert set(drawn.values()) == {(5, number) for number in range(5)}
    assert all(numbers(pairs.choose(*of(answers), rules, seed))[0] == expected for seed, expected in drawn.items())


def test_answers_of_two_prompts_or_twice_the_same_are_our_own_mistake():
    samples, scores = of([(sample(0, "a"), 1.0), (sample(0, "b"), 0.0)])
    for wrong in ([*samples, sample(0, "c", prompt_id="other")], [*samples, samples[0]]):
        with pytest.raises(ValueError, match="the answers of one prompt, each once"):
            pairs.choose(wrong, scores, ANY, 0)
    with pytest.raises(ValueError, match="each once"):
        pairs.choose(samples, [*scores, scores[0]], ANY, 0)


def test_a_pair_is_an_ordinary_record_with_its_scores_beside(tmp_path: Path):
    answers = [(sample(0, "good", 4), 2.5), (sample(0, "bad", 6), -1.0), (sample(0, "worse", 5), -2.0)]
    found = pairs.choose(*of(answers), PairRules(per_prompt=2), 0)
    assert not isinstance(found, str)
    made = [pairs.record((Message("user", "Well?"),), "sampled", each) for each in found]
    assert [(pair.id, pair.chosen, pair.rejected) for pair in made] == [("p:0-2", "good", "worse"), ("p:0-1", "good", "bad")]
    assert {records.prompt_id(pair) for pair in made} == {"p"}
    made[1] = replace(made[1], rejected_ending="cut")
    records.write_records(tmp_path / "records.parquet", made, "pair")
    assert list(records.read_records(tmp_path / "records.parquet")) == made
    pairs.write_info(tmp_path / pairs.INFO, map(pairs.info, found))
    table = pq.read_table(tmp_path / pairs.INFO)
    assert table.schema.equals(pairs.INFO_SCHEMA)
    assert table.to_pylist()[0] == {
        "pair_id": "p:0-2",
        "prompt_id": "p",
        "chosen_number": 0,
        "rejected_number": 2,
        "chosen_score": 2.5,
        "rejected_score": -2.0,
        "margin": 4.5,
        "chosen_tokens": 4,
        "rejected_tokens": 5,
    }
