"""What of a training would be in vain is said: rows that only fill up a batch, steps that only warm up. See also test_cluster.py."""

import pytest

from rounds.train.config.training import Training
from rounds.train.engine import batches


@pytest.mark.parametrize(
    ("rows", "changes", "says"),
    [
        (13, {"global_batch_size": 1000, "warmup_steps": 0}, ["more than the 13 rows of the set: each step computes them 76.9 times"]),
        (1000, {"global_batch_size": 1000, "warmup_steps": 0}, []),
        (16, {"warmup_steps": 2}, ["warmup_steps 2 is no less than the 2 steps of the training"]),
        (16, {"warmup_steps": 2, "lr_scheduler_type": "constant"}, []),
        (16, {}, ["the first of 2 steps warms up from a learning rate of 0 and changes nothing"]),
        (160, {}, ["the first of 20 steps"]),
        (161, {}, []),
        (8, {}, ["one step has no warm-up"]),
        (4, {"warmup_steps": 5}, ["more than the 4 rows", "one step"]),
    ],
)
def test_what_would_be_in_vain_is_said_with_the_numbers(rows: int, changes: dict, says: list[str]):
    training = Training.model_validate({"learning_rate": 1e-3, "global_batch_size": 8, "max_length": 96, **changes})
    found = batches.notes(rows, training)
    assert len(found) == len(says) and all(word in note for word, note in zip(says, found, strict=True))
