"""Super-NaturalInstructions, the health tasks: each row an instruction, an input and the expected output.

In: hub `Muennighoff/natural-instructions`, one file a task, of which the tasks below are read from folder `train` or
`test` (the benchmark's held-out tasks, evaluation only). Out: conversations, with the task as `group`. Licence:
Apache-2.0 (https://github.com/allenai/natural-instructions; this copy's card names none).
https://huggingface.co/datasets/Muennighoff/natural-instructions
Example row, of our own:

    {"task_name": "task1448_disease_entity_extraction_ncbi_dataset", "id": "task1448-1", "definition": "List the
     diseases that the sentence names.", "inputs": "Rickets was common then.", "targets": "Rickets"}

The tasks are those whose domain, in the list of the GitHub repository, is medicine, health care or clinical knowledge,
and those on medical papers (Ohsumed, CODA-19, SciFact). Left out are tasks made from sets that have a source or a
benchmark of their own, whose test rows would come in by the back door: MMLU (13 tasks), PubMedQA (5), HEAD-QA (4),
PUBHEALTH (3); translation; and one that the list puts under medicine by mistake. Med42-v2 speaks of 47 tasks without
naming them. Files (`test/task1161_coda19_title_generation_test.jsonl`) and columns are those that `get_ni.py` of the
repository writes. It writes the tasks of the benchmark's own two lists: a task that is on neither has no file, and no rows.
"""

from collections.abc import Iterator

from rounds.data_prep import hub, render
from rounds.data_prep.records import Conversation, stable_hash
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, RowError, Source
from rounds.data_prep.turns import required, text

REPOSITORY = "Muennighoff/natural-instructions"
REVISION = "a29a9757125f4bb1c26445ad0d2ef7d9b2cc9c4c"
TASKS = (
    "task179_participant_extraction",
    "task180_intervention_extraction",
    "task181_outcome_extraction",
    "task352_coda-19_classification",
    "task619_ohsumed_abstract_title_generation",
    "task620_ohsumed_medical_subject_headings_answer_generation",
    "task621_ohsumed_yes_no_numerical_answer_generation",
    "task623_ohsumed_yes_no_answer_generation",
    "task624_ohsumed_question_answering",
    "task1161_coda19_title_generation",
    "task1162_coda19_title_classification",
    "task1163_coda19_section_classification",
    "task1164_coda19_section_correction_classification",
    "task1447_drug_extraction_ade",
    "task1448_disease_entity_extraction_ncbi_dataset",
    "task1449_disease_entity_extraction_bc5cdr_dataset",
    "task1451_drug_dose_extraction",
    "task1480_gene_extraction_jnlpba_dataset",
    "task1481_gene_extraction_bc2gm_dataset",
    "task1482_gene_extraction_chemprot_dataset",
    "task1483_chemical_extraction_chemprot_dataset",
    "task1484_gene_extraction_linnaeus_dataset",
    "task1485_organ_extraction_anem_dataset",
    "task1486_cell_extraction_anem_dataset",
    "task1487_organism_substance_extraction_anem_dataset",
    "task1495_adverse_drug_event_classification",
    "task1586_scifact_title_generation",
    "task1587_scifact_classification",
    "task1589_scifact_classification",
    "task1645_medical_question_pair_dataset_text_classification",
)
FILES = {split: tuple(f"{split}/{task}*" for task in TASKS) for split in ("train", "test")}


def rows(use: SourceUse) -> Iterator[Row | RowError]:
    """Yield the rows of the tasks."""
    return hub.rows(use, REPOSITORY, revision=REVISION, split=use.split, patterns=FILES[use.split])


def to_record(row: Row, index: int, use: SourceUse) -> Conversation:
    """Give the task and its input; raises `RowError` `not_a_health_task` (not bad) for a row of another task."""
    task = text(required(row, "task_name"), "task_name")
    if task not in TASKS:
        raise RowError("not_a_health_task", bad=False)
    texts = {column: text(required(row, column), column) for column in ("definition", "inputs", "targets")}
    # An input has as many rows as it has right answers, under one id: the answer is part of the name.
    name = f"{task}/{stable_hash(texts['inputs'], texts['targets']):016x}"
    asked = render.request("task", name, seed=use.seed, question=texts["definition"], text=texts["inputs"])
    return render.exchange("natural_instructions", name, asked, texts["targets"], group=task)


SOURCE = Source(
    name="natural_instructions",
    description="thirty health tasks of Super-NaturalInstructions: extraction, classification, titles",
    licence="apache-2.0",
    splits={"train": "conversation", "test": "conversation"},
    rows=rows,
    to_record=to_record,
    repository=REPOSITORY,
    revision=REVISION,
    files=(*FILES["train"], *FILES["test"]),
    columns=("task_name", "definition", "inputs", "targets"),
    evaluation_only=("test",),
)
