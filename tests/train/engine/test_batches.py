"""What of a training would be in vain is said: rows that only fill up a batch, steps that only warm up. See also test_cluster.py."""

import pytest

from rounds.train.config.training import Training
from rounds.train.engine import batches


@pytest.mark.parametrize(
    ("rows", "changes", "says"),
    [
        (13, {"global_batch_size": 1000}, ["more than the 13 rows of the set: each step computes them 76.9 times"]),
        (1000, {"global_batch_size": 1000}, []),
        (16, {"warmup_steps": 2}, ["warmup_steps 2 is no less than the 2 steps of the training"]),
        (16, {"warmup_steps": 2, "lr_scheduler_type": "constant"}, []),
        (16, {"warmup_steps": 2, "num_train_epochs": 2}, []),
        (16, {"warmup_steps": 0.9}, []),
        (4, {"warmup_steps": 5}, ["more than the 4 rows", "warmup_steps 5"]),
    ],
)
def test_what_would_be_in_vain_is_said_with_the_numbers(rows: int, changes: dict, says: list[str]):
    training = Training.model_validate({"learning_rate": 1e-3, "global_batch_size": 8, "max_length": 96, **changes})
    found = batches.notes(rows, training)
    assert len(found) == len(says) and all(word in note for word, note in zip(says, found, strict=True))
