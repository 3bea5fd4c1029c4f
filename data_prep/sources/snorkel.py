"""Snorkel's three rounds of pairs: five answers of the round's own model, the best and the worst by PairRM.

In: hub `snorkelai/Snorkel-Mistral-PairRM-DPO-Dataset`, splits `train_iteration_1..3` (19,766, 19,958 and 19,996 rows)
and `test_iteration_1..3` (about 1,000 each, evaluation only). Out: `Pair`. Licence: Apache-2.0.
https://huggingface.co/datasets/snorkelai/Snorkel-Mistral-PairRM-DPO-Dataset
Example row, of our own:

    {"prompt_id": "5f1d", "prompt": "Name a citrus fruit.",
     "chosen": [{"content": "Name a citrus fruit.", "role": "user"}, {"content": "A lemon.", "role": "assistant"}],
     "rejected": [{"content": "Name a citrus fruit.", "role": "user"}, {"content": "A pear.", "role": "assistant"}],
     "all_generated_responses": ["A pear.", "A lemon."], "all_rm_scores": [-1.5, 2.25]}

Two traps. The prompts are UltraFeedback's, with its prompt ids (here `group`), and nearly all of them: 20,000 others in
each iteration. So the second and third round of a run that began with UltraFeedback meet prompts it has seen, and
UltraFeedback's held-out prompts may be among those trained on. And the three test splits share their prompts (public
code asserts that those of the first two are all in the third): they are one held-out set, not three. `decontaminate`
removes held-out prompts by `group` and by text. Commit, columns and counts were read on stored pages of two mirrors.
"""

from rounds.data_prep import hub
from rounds.data_prep.records import Pair, stable_hash
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, Source
from rounds.data_prep.turns import identity, preference, required

REPOSITORY = "snorkelai/Snorkel-Mistral-PairRM-DPO-Dataset"
REVISION = "1fb8cdacb54a8a2393cc3cbf1078b2ec30ddc30c"


def to_record(row: Row, index: int, use: SourceUse) -> Pair:
    """Take all turns but the last as the prompt; raises `RowError` with the reasons of `turns.preference`."""
    group = identity(required(row, "prompt_id"), "prompt_id")
    sides = preference(None, required(row, "chosen"), required(row, "rejected"))
    name = f"{group}:{stable_hash(sides['chosen'], sides['rejected']):016x}"
    return Pair(id=name, source="snorkel", group=group, **sides)


SOURCE = Source(
    name="snorkel",
    description="three rounds of on-policy pairs for UltraFeedback's prompts, ranked by PairRM",
    licence="apache-2.0",
    splits={
        "train_iteration_1": "pair",
        "train_iteration_2": "pair",
        "train_iteration_3": "pair",
        "test_iteration_1": "pair",
        "test_iteration_2": "pair",
        "test_iteration_3": "pair",
    },
    rows=hub.reader(REPOSITORY, REVISION),
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    columns=("prompt_id", "chosen", "rejected"),
    evaluation_only=("test_iteration_1", "test_iteration_2", "test_iteration_3"),
    sizes={
        "train_iteration_1": 19_766,
        "train_iteration_2": 19_958,
        "train_iteration_3": 19_996,
        "test_iteration_1": 994,
        "test_iteration_2": 1_000,
        "test_iteration_3": 1_000,
    },
    mean_tokens={
        "train_iteration_1": (150, 375),
        "train_iteration_2": (150, 430),
        "train_iteration_3": (150, 535),
    },
    version=2,
)
