"""What every section of a recipe or cluster file is held to: numbers that are numbers, within bounds that say why."""

import importlib
import pkgutil
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import annotated_types
import pytest
from pydantic import ValidationError

from rounds.data_prep import filters
from rounds.data_prep.schema import Between, MixItem, RowsUse, Section
from rounds.train import config
from rounds.train.config.cluster import Machine
from rounds.train.config.training import DpoLoss, Lora, Training

FREE = {"Rule.at_least", "Rule.at_most"}
"""Values of metrics, which have a scale of their own each."""
LOW, HIGH = (annotated_types.Ge, annotated_types.Gt), (annotated_types.Le, annotated_types.Lt)


def sections() -> list[type[Section]]:
    for package in (filters, config):
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")

    def below(section: type[Section]) -> Iterator[type[Section]]:
        for each in section.__subclasses__():
            yield each
            yield from below(each)

    return [
        each
        for each in dict.fromkeys(below(Section))
        if each.__module__.startswith("rounds.") and ".engine." not in each.__module__ and not each.__name__.endswith("Params")
    ]


def numbers(annotation: Any, marks: tuple = ()) -> Iterator[tuple]:
    """Yield what is said of each number that a field may hold."""
    if typing.get_origin(annotation) is Annotated:
        inner, *more = typing.get_args(annotation)
        yield from numbers(inner, (*marks, *more))
    elif annotation in (int, float):
        yield marks
    elif typing.get_origin(annotation) is not typing.Literal:
        for each in typing.get_args(annotation):
            yield from numbers(each, marks)


def bounded(marks: tuple) -> bool:
    said = [inner for mark in marks for inner in getattr(mark, "metadata", [mark])]
    both = all(any(isinstance(each, side) for each in said) for side in (LOW, HIGH))
    return both or any(isinstance(each, Between) and each.why for each in said)


def test_every_number_has_both_bounds():
    fields = [(section, name, field) for section in sections() for name, field in section.model_fields.items()]
    without = {
        f"{section.__name__}.{name}"
        for section, name, field in fields
        for marks in numbers(field.annotation, tuple(field.metadata))
        if not bounded(marks) and (section.__name__, name) not in {("Variant", "rounds")}  # positions
    }
    assert without == FREE
    assert len(fields) > 150


TRAINING = {"learning_rate": 1e-5, "global_batch_size": 8, "max_length": 512}


@pytest.mark.parametrize(
    ("section", "given", "says"),
    [
        (Training, {**TRAINING, "learning_rate": True}, "expected a number, found true"),
        (Training, {**TRAINING, "stop_on_loss_above": False}, "expected a number, found false"),
        (DpoLoss, {"loss_weights": [True]}, "expected a number, found true"),
        (Machine, {"micro_batch_size": True}, "expected a number, found true"),
        (RowsUse, {"source": "file", "max_rows": True}, "expected a number, found true"),
        (
            Training,
            {**TRAINING, "num_train_epochs": 1e18},
            "expected 1e-06 to 1,000, found 1e+18: a thousand passes learn the rows by heart",
        ),
        (Training, {**TRAINING, "max_length": 2}, "expected 8 to 10,000,000, found 2: a chat template alone takes some tokens"),
        (DpoLoss, {"beta": 1e-300}, "expected 1e-05 to 100, found 1e-300: below, the loss does not see the pairs"),
        (DpoLoss, {"loss_weights": [-1.0]}, "a negative weight would teach the opposite"),
        (Lora, {"r": 10**6}, "an update is of full rank"),
        (MixItem, {"name": "a", "epochs": 1e9}, "found 1e+09: each pass over a source is rows of the mix"),
    ],
)
def test_what_is_no_number_or_absurd_is_refused_with_the_reason(section: type[Section], given: dict, says: str):
    with pytest.raises(ValidationError) as error:
        section.model_validate(given)
    assert says in error.value.errors()[0]["msg"]


def test_a_truth_value_is_taken_where_one_is_meant_and_text_where_it_is_a_number():
    assert Lora.model_validate({"use_dora": True}).use_dora
    assert Training.model_validate({**TRAINING, "learning_rate": "1e-5"}).learning_rate == 1e-5  # as YAML 1.1 reads 1e-5
