"""Choices scored here get what lm-eval's own Hugging Face backend gives them: log-probabilities, accuracies, item by item."""

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Message, Question
from rounds.train.config.cluster import Machine
from rounds.train.engine import policy
from rounds.train.engine.params import Task
from rounds.train.evaluation import choices, lm_eval
from rounds.train.weights import choice_logprobs, models

CPU = Machine(device="cpu", threads=1)
TEXTS = ("It blocks the pump.", "It opens the airways of the lung.", "Glücose — lower.", "No.", "It displaces opioids")
LM_EVAL = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: acc_bytes, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture
def model(shelf: Path) -> PreTrainedModel:
    """A small Llama with opinions."""
    made = models.load_model(policy.read(shelf / "base"), CPU).eval()
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.25 * torch.randn_like(parameter))
    return made


@pytest.fixture
def tokenizer(shelf: Path) -> PreTrainedTokenizerBase:
    """The run's tokenizer, with Llama 3's template."""
    return models.load_tokenizer(policy.read(shelf / "base"))


@pytest.fixture
def questions() -> list[Question]:
    """Thirty questions of two to five choices, in two groups; among the texts are umlauts, braces, Python's lists and its quotes."""
    made = []
    for number in range(30):
        texts = (*TEXTS[number % 5 :], *TEXTS[: number % 5])[: 2 + number % 4]
        asked = f"Which of {{{{these}}}} is it, number {number}: 'a' or \"b\"?" + " Say it." * (number % 7)
        made.append(Question(f"q{number}", "made", (Message("user", asked),), texts, number % len(texts), f"part{number % 2}"))
    made.append(Question("lists", "made", (Message("user", "[1]"),), ("[1]", '["a"]', "['b', 2]"), 1, "part0"))
    made.append(Question("white", "made", (Message("user", "One.\n\nTwo?\n"),), (" Yes\nand no. ", "No, é.", "7"), 2, "part1"))
    return made


def task(limit: int | None = None, yaml: str | None = None) -> Task:
    return Task(task="choice_likelihood", name="facts", source="asked", num_fewshot=0, limit=limit, yaml=yaml)


def measured(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    limit: int | None = None,
    window: int = 256,
    too_long: choices.TooLong = "drop",
    batch_size: int = 5,
) -> tuple[choices.Measured, list[dict]]:
    log = io.StringIO()
    score: choices.Score = lambda rows: choice_logprobs.score(model, rows, batch_size)  # noqa: E731
    found = choices.measure(task(limit), folder, tokenizer, window, too_long, score, log)
    return found, [json.loads(line) for line in log.getvalue().splitlines()]


def by_lm_eval(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, out: Path, window: int = 256
) -> tuple[dict[str, dict[str, float]], list[dict], dict]:
    out.mkdir()
    log, dropped = io.StringIO(), {}
    lm = lm_eval.wrap(model, tokenizer, 5, window, out)
    values: dict[str, dict[str, float]] = {}
    for given in lm_eval.run_tasks(lm, [task(yaml=LM_EVAL)], {"asked": folder}, out, "drop", log, dropped):
        assert isinstance(given, lm_eval.Value)
        values.setdefault(given.metric, {})[given.item] = given.value
    return values, [json.loads(line) for line in log.getvalue().splitlines()], dropped


def test_log_probabilities_and_accuracies_are_lm_evals(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question], put: Callable, tmp_path: Path
):
    folder = put("asked", questions)
    found, log = measured(model, tokenizer, folder)
    values, wanted, _ = by_lm_eval(model, tokenizer, folder, tmp_path / "lm-eval")
    assert found.values == values and set(values) == {
        "facts/acc",
        "facts/acc_norm",
        "facts/acc_bytes",
        "facts/acc/part0",
        "facts/acc/part1",
    }
    right = {line["id"]: [value for value, _ in line["answers"]] for line in wanted}
    assert len(log) == len(right) == 32
    for line in log:
        assert line["answers"] == pytest.approx(right[line["id"]], rel=1e-6, abs=1e-5), line["id"]
    for metric in choices.METRICS:
        assert 0 < sum(values[f"facts/{metric}"].values()) < 32, "all alike: the test could not tell a mistake"


def test_each_metric_divides_by_its_own_length(tokenizer: PreTrainedTokenizerBase, put: Callable):
    texts = ("Yes", "Not at all", "ééééé")
    folder = put("asked", [Question(str(right), "made", (Message("user", f"{right}?"),), texts, right) for right in range(3)])
    found = choices.measure(task(), folder, tokenizer, 256, "drop", lambda rows: [[-3.0, -6.0, -3.5] for _ in rows], io.StringIO())
    likeliest = {metric: [item for item, value in items.items() if value] for metric, items in found.values.items()}
    assert likeliest == {"facts/acc": ["facts/0"], "facts/acc_norm": ["facts/1"], "facts/acc_bytes": ["facts/2"]}


def test_scores_are_the_same_whatever_the_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question], put: Callable
):
    folder = put("asked", questions)
    (one, log), (many, other) = (measured(model, tokenizer, folder, batch_size=size) for size in (1, 32))
    assert one == many
    for line, same in zip(log, other, strict=True):
        assert line["answers"] == pytest.approx(same["answers"], rel=1e-6, abs=1e-5)


def test_what_does_not_fit_is_dropped_and_counted_or_ends_the_evaluation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question], put: Callable, tmp_path: Path
):
    """Also a choice that is longer than the window by itself, which ended lm-eval with an assertion without a message."""
    long = [Question("long", "made", (Message("user", "Why? " * 200),), ("Yes.", "No."), 0),
            Question("choice", "made", (Message("user", "Why?"),), ("Yes.", "No, " * 300), 0)]  # fmt: skip
    folder = put("asked", [*questions, *long])
    found, log = measured(model, tokenizer, folder)
    assert found.dropped == Counter({"longer_than_max_length": 2}) and len(found.values["facts/acc"]) == 32
    assert {line["id"] for line in log if line.get("dropped") == "longer_than_max_length"} == {"long", "choice"}
    values, _, dropped = by_lm_eval(model, tokenizer, folder, tmp_path / "lm-eval")
    assert values == found.values and dropped == {"facts": {"longer_than_max_length": 2}}
    with pytest.raises(UserError, match=r"task 'facts': 2 of 34 rows are longer than 256 tokens.*the longest has \d.*too_long: drop"):
        measured(model, tokenizer, folder, too_long="fail")
    with pytest.raises(UserError, match=r"none of its 34 questions can be asked within 8 tokens.*longer_than_max_length': 34"):
        measured(model, tokenizer, folder, window=8)


def test_the_border_is_where_lm_eval_reads_every_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, put: Callable, tmp_path: Path
):
    question = Question("q", "made", (Message("user", "Why?"),), ("Yes.", "No, not so."), 0)
    folder = put("asked", [question, Question("r", "made", (Message("user", "?"),), ("Y", "N"), 0)])
    whole = len(tokenizer(tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False,
                          add_generation_prompt=True) + "No, not so.", add_special_tokens=False)["input_ids"])  # fmt: skip
    for window, number in ((whole, 2), (whole - 1, 1)):
        assert len(measured(model, tokenizer, folder, window=window)[0].values["facts/acc"]) == number
        assert len(by_lm_eval(model, tokenizer, folder, tmp_path / str(window), window)[0]["facts/acc"]) == number


def test_floors_are_what_is_right_without_reading(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question], put: Callable
):
    found, _ = measured(model, tokenizer, put("asked", questions))
    for group in ("part0", "part1"):
        rows = [question for question in questions if question.group == group]
        longest = [max(question.choices, key=len) == question.choices[question.answer] for question in rows]
        constant = max(sum(question.answer == place for question in rows) for place in range(5))
        wanted = {
            "chance": sum(1 / len(question.choices) for question in rows) / 16,
            "constant": constant / 16,
            "longest": sum(longest) / 16,
        }
        assert found.floors[f"facts/acc/{group}"] == pytest.approx(wanted)
    assert found.floors["facts/acc"] == found.floors["facts/acc_norm"] == found.floors["facts/acc_bytes"]
    assert found.floors.keys() == found.values.keys()


def test_turns_of_a_prompt_are_asked_as_turns(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, put: Callable):
    prompt = (Message("system", "Answer as a pharmacist."), Message("user", "Is it so?"))
    asked: list = []

    def score(rows):
        asked.extend(rows)
        return [[0.0] * len(answers) for _, answers in rows]

    choices.measure(task(), put("asked", [Question("q", "made", prompt, ("Yes", "No"), 0)]), tokenizer, 256, "drop", score, io.StringIO())
    said = tokenizer.decode(asked[0][0] + asked[0][1][0])
    turns = [{"role": each.role, "content": each.content} for each in prompt]
    assert said == tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) + "Yes"


def test_questions_that_cannot_be_asked_are_counted_by_reason(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question], put: Callable
):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m['content'] | replace('lost', '') }}{% endfor %}{% if add_generation_prompt %}\nA: {% endif %}"
    )
    system = Question("system", "made", (Message("system", "Be brief."), Message("user", "Is it?")), ("Yes", "No"), 0)
    lost = Question("lost", "made", (Message("user", "It is lost."),), ("Yes", "No"), 0)
    empty = Question("empty", "made", (Message("user", "Is it?"),), ("Yes", ""), 0)
    found, _ = measured(model, tokenizer, put("asked", [*questions, system, lost, empty]))
    assert found.dropped == Counter({"template_refuses_conversation": 1, "template_loses_content": 1, "empty_choice": 1})
    assert len(found.values["facts/acc"]) == 32


def test_a_limit_takes_the_first_by_hash(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question], put: Callable
):
    folder = put("asked", questions)
    some, _ = measured(model, tokenizer, folder, limit=7)
    every, _ = measured(model, tokenizer, folder)
    assert len(some.values["facts/acc"]) == 7
    assert some.values["facts/acc"].items() <= every.values["facts/acc"].items()
