"""UltraFeedback, binarized: general instructions, the best of four answers against one of the other three (GPT-4).

In: hub `HuggingFaceH4/ultrafeedback_binarized`, splits `train_prefs` (61,135 rows) and `test_prefs` (2,000, evaluation
only). Out: `Pair`. Licence: MIT. https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized
Example row, of our own:

    {"prompt": "Name a citrus fruit.", "prompt_id": "5f1d",
     "chosen": [{"role": "user", "content": "Name a citrus fruit."}, {"role": "assistant", "content": "A lemon."}],
     "rejected": [{"role": "user", "content": "Name a citrus fruit."}, {"role": "assistant", "content": "A pear."}],
     "score_chosen": 8.5, "score_rejected": 2.0}

Pairs with equal scores or equal answers say nothing about which is better: they are dropped and counted, and not
taken for bad rows; scores that contradict the sides are bad. One prompt can have several rows, so an id is the
prompt's id and a hash of the answers; `group` is the prompt's id. Snorkel's sets have the same prompts under the same
ids. The commit is the one that many public projects pin, one of them with the digest of `test_prefs`; columns and
counts were read on stored copies of the card.
"""

from rounds.data_prep import hub
from rounds.data_prep.records import Pair, stable_hash
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, Source
from rounds.data_prep.turns import identity, preference, required

REPOSITORY = "HuggingFaceH4/ultrafeedback_binarized"
REVISION = "3949bf5f8c17c394422ccfab0c31ea9c20bdeb85"


def to_record(row: Row, index: int, use: SourceUse) -> Pair:
    """Take all turns but the last as the prompt; raises `RowError` with the reasons of `turns.preference`."""
    group = identity(required(row, "prompt_id"), "prompt_id")
    sides = preference(None, required(row, "chosen"), required(row, "rejected"))
    for column in ("score_chosen", "score_rejected"):  # `Source.convert` compares them
        required(row, column)
    name = f"{group}:{stable_hash(sides['chosen'], sides['rejected']):016x}"
    return Pair(id=name, source="ultrafeedback", group=group, **sides)


SOURCE = Source(
    name="ultrafeedback",
    description="general preference pairs, graded by GPT-4, as the Zephyr recipe uses them",
    licence="mit",
    splits={"train_prefs": "pair", "test_prefs": "pair"},
    rows=hub.reader(REPOSITORY, REVISION),
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    columns=("prompt_id", "chosen", "rejected", "score_chosen", "score_rejected"),
    evaluation_only=("test_prefs",),
    sizes={"train_prefs": 61_135, "test_prefs": 2_000},
    mean_tokens={"train_prefs": (150, 275)},
    version=2,
)
