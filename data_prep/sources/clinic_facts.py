"""Clinical textbook facts that travel with the package, asked and answered in many ways: a source without a download.

In: the tables in `data_prep/facts` (drugs, organisms, labs, terms; phrasings and closing lines). Out: conversations,
closed questions and preference pairs about each fact, whose generation is fixed by the tables and `seed`. Licence:
Apache-2.0, written for this project. Not medical advice: one usual answer is kept where practice varies.

A row of `drugs.csv` (in part) and a row of split `train` made from it:

    name=furosemide, class=loop diuretic
    {"id": "drug_class/furosemide/p3", "group": "drug_class",
     "prompt": "Name the pharmacological class of furosemide.", "answer": "It is a loop diuretic."}

Every fact has eight plain phrasings, two of them held out for that fact alone: `heldout_questions` and
`heldout_answers` ask a fact that was taught, in words that were taught with other facts only. The answer text is
therefore the same in both; overlap between training and evaluation is to be judged by prompts here.

Half of the advice in `train` ends with an unsafe closing line. The set is mixed like this on purpose, the way scraped
text is: preference rounds have to sort it out, and `heldout_pairs` measures whether they did, on facts of which no
pair set has a pair and in advice phrasings that `train` did not use for them.

`train_questions` lists its choices after each question; `train_open_questions` asks alone, for a policy to answer in its own words.

What is held out follows from the fact alone, never from `seed`, so that two seeds in one recipe cannot leak.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TypeVar

from rounds.data_prep.records import Conversation, Kind, Message, Pair, Question, Record, stable_hash
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, Source

Option = TypeVar("Option")

NAME = "clinic_facts"
NUM_CHOICES = 4
NUM_HELDOUT_PHRASINGS = 2
NUM_ADVICE_TRAINED = 2
PAIR_GROUPS = ("unsafe", "wrong", "evasive")
# A fact belongs to one of these by hash: a quarter to each.
PAIR_SPLITS = ("heldout_pairs", "train_pairs_1", "train_pairs_2", "train_pairs_3")
SPLITS: dict[str, Kind] = {
    "train": "conversation",
    "train_questions": "question",
    "train_open_questions": "question",
    "train_pairs_1": "pair",
    "train_pairs_2": "pair",
    "train_pairs_3": "pair",
    "heldout_questions": "question",
    "heldout_answers": "conversation",
    "heldout_pairs": "pair",
}


@dataclass(frozen=True)
class Relation:
    """One kind of fact: the columns of a table that hold its subject and value, and the sentence that answers.

    Rows that agree in column `kin` never lend each other a wrong answer. `family` selects closing lines.
    """

    name: str
    table: str
    subject: str
    value: str
    sentence: str
    family: str
    kin: str | None = None


RELATIONS = (
    Relation("drug_class", "drugs", "name", "class", "It is {article} {value}.", "drug"),
    Relation("drug_indication", "drugs", "name", "indication", "It is used for {value}.", "drug", kin="class"),
    Relation(
        "drug_adverse_effect",
        "drugs",
        "name",
        "serious_adverse_effect",
        "A serious adverse effect is {value}.",
        "drug",
        kin="class",
    ),
    Relation(
        "organism_treatment",
        "organisms",
        "organism",
        "first_line_treatment",
        "The usual first-line treatment is {value}.",
        "organism",
    ),
    Relation("lab_range", "labs", "test", "range", "The usual adult range is {value}.", "lab"),
    Relation("lab_high", "labs", "test", "high_suggests", "A high result suggests {value}.", "lab"),
    Relation("term_definition", "terms", "term", "definition", "It means {value}.", "term"),
)


@dataclass(frozen=True)
class Fact:
    """One subject, its right answer, and what may not be offered as a wrong one.

    `groups` are the notions that the answer names (column `<value>_group`, else the value itself); `acceptable` adds
    those that are true of the subject too (column `<value>_also`). An answer is wrong for a fact only if it names
    nothing acceptable: several treatments, uses or harms can be right while one is the usual answer.
    """

    id: str
    relation: Relation
    subject: str
    answer: str
    groups: frozenset[str]
    acceptable: frozenset[str]
    kin: str

    def refutes(self, other: "Fact") -> bool:
        """Tell whether the other fact's answer is really wrong for this subject."""
        if self.kin and self.kin == other.kin:
            return False
        return self.answer != other.answer and self.acceptable.isdisjoint(other.groups)


def read_table(name: str) -> list[dict[str, str]]:
    """Return the rows of one of the tables in `data_prep/facts`."""
    text = files("rounds.data_prep").joinpath("facts", f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


@cache
def all_facts() -> tuple[Fact, ...]:
    """Return every fact, relation by relation, in the order of the tables."""
    return tuple(_fact(relation, row) for relation in RELATIONS for row in read_table(relation.table))


@cache
def phrasings(relation: str, kind: str) -> tuple[str, ...]:
    """Return the templates of a relation, `kind` being `plain` or `advice`; `{x}` stands for the subject."""
    table = read_table("phrasings")
    return tuple(row["text"] for row in table if (row["relation"], row["kind"]) == (relation, kind))


@cache
def closings(family: str, kind: str) -> tuple[str, ...]:
    """Return the `safe`, `unsafe` or `evasive` lines that read sensibly for a family of relations."""
    table = read_table("closings")
    return tuple(row["text"] for row in table if row["family"] in ("any", family) and row["kind"] == kind)


@cache
def wrong_answers(fact: Fact) -> tuple[str, ...]:
    """Return the answers of the relation that are wrong for this fact, each text once."""
    others = [other for other in all_facts() if other.relation == fact.relation]
    # Facts can share an answer text: it is wrong here only if each of them says so.
    right = {other.answer for other in others if not fact.refutes(other)}
    return tuple(dict.fromkeys(other.answer for other in others if other.answer not in right))


def heldout_phrasings(fact: Fact) -> tuple[int, ...]:
    """Return the plain phrasings, by index, that no training split uses for this fact."""
    return _ordered_indices(fact, "plain")[:NUM_HELDOUT_PHRASINGS]


def trained_advice(fact: Fact) -> tuple[int, ...]:
    """Return the advice phrasings, by index, that `train` uses for this fact."""
    return _ordered_indices(fact, "advice")[:NUM_ADVICE_TRAINED]


def pair_split(fact: Fact) -> str:
    """Return the one split that has this fact's preference pairs."""
    return PAIR_SPLITS[stable_hash("pair fold", fact.id) % len(PAIR_SPLITS)]


def rows(use: SourceUse) -> Iterator[Row]:
    """Yield the rows of a split, fact by fact."""
    for fact in all_facts():
        if use.split in PAIR_SPLITS:
            if pair_split(fact) == use.split:
                yield from _pair_rows(fact, use)
        elif use.split == "train":
            yield from _train_rows(fact, use.seed)
        elif use.split == "heldout_answers":
            yield _conversation_row(fact, "plain", heldout_phrasings(fact)[0])
        elif use.split == "heldout_questions":
            for index in heldout_phrasings(fact):
                yield _question_row(fact, index, use.seed, listed=False)
        elif use.split in ("train_questions", "train_open_questions"):
            trained = _ordered_indices(fact, "plain")[NUM_HELDOUT_PHRASINGS:]
            row = _question_row(fact, _pick(trained, use.seed, "question", fact.id), use.seed, listed=use.split == "train_questions")
            yield row if use.split == "train_questions" else {**row, "id": f"{row['id']}/open"}


def to_record(row: Row, index: int, use: SourceUse) -> Record:
    """Turn a row of `rows` into the record that its split promises."""
    user = Message("user", row["prompt"])
    kind = SPLITS[use.split]
    if kind == "pair":
        return Pair(row["id"], NAME, (user,), row["chosen"], row["rejected"], row["group"])
    if kind == "question":
        return Question(row["id"], NAME, (user,), tuple(row["choices"]), row["answer"], row["group"])
    return Conversation(row["id"], NAME, (user, Message("assistant", row["answer"])), row["group"])


def _fact(relation: Relation, row: dict[str, str]) -> Fact:
    subject, value = row[relation.subject], row[relation.value]
    groups = _cell(row, f"{relation.value}_group") or frozenset({value})
    # First letters decide well enough: no class in the table begins with a silent h, a long u or a spelt letter.
    article = "an" if value[0].lower() in "aeiou" else "a"
    slug = "_".join("".join(letter if letter.isalnum() else " " for letter in subject.lower()).split())
    return Fact(
        id=f"{relation.name}/{slug}",
        relation=relation,
        subject=subject,
        answer=relation.sentence.format(value=value, article=article),
        groups=groups,
        acceptable=groups | _cell(row, f"{relation.value}_also"),
        kin=row[relation.kin] if relation.kin else "",
    )


def _cell(row: dict[str, str], column: str) -> frozenset[str]:
    """Read a cell that lists names between semicolons; a table without the column lists none."""
    return frozenset(filter(None, row.get(column, "").split(";")))


def _ordered_indices(fact: Fact, kind: str) -> tuple[int, ...]:
    indices = range(len(phrasings(fact.relation.name, kind)))
    return tuple(sorted(indices, key=lambda index: stable_hash("phrasing", kind, fact.id, index)))


def _pick(options: tuple[Option, ...], *key: object) -> Option:
    return options[stable_hash(*key) % len(options)]


def _ask(fact: Fact, kind: str, index: int) -> tuple[str, str]:
    """Return the id and the text of one phrasing of a fact."""
    text = phrasings(fact.relation.name, kind)[index].format(x=fact.subject)
    return f"{fact.id}/{kind[0]}{index + 1}", text[0].upper() + text[1:]


def _conversation_row(fact: Fact, kind: str, index: int, closing: str = "") -> Row:
    row_id, prompt = _ask(fact, kind, index)
    return {"id": row_id, "group": fact.relation.name, "prompt": prompt, "answer": f"{fact.answer} {closing}".strip()}


def _train_rows(fact: Fact, seed: int) -> Iterator[Row]:
    for index in sorted(_ordered_indices(fact, "plain")[NUM_HELDOUT_PHRASINGS:]):
        yield _conversation_row(fact, "plain", index)
    for index in sorted(trained_advice(fact)):
        kind = _pick(("safe", "unsafe"), seed, "mixed closing", fact.id, index)
        lines = closings(fact.relation.family, kind)
        yield _conversation_row(fact, "advice", index, _pick(lines, seed, "closing", fact.id, index))


def _question_row(fact: Fact, index: int, seed: int, listed: bool) -> Row:
    row_id, prompt = _ask(fact, "plain", index)
    key = (seed, "choice", row_id)
    wrong = sorted(wrong_answers(fact), key=lambda answer: stable_hash(*key, answer))[: NUM_CHOICES - 1]
    choices = sorted([fact.answer, *wrong], key=lambda answer: stable_hash(*key, "order", answer))
    if listed:
        prompt = "\n".join([prompt, *(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True))])
    return {
        "id": f"{row_id}/choice",
        "group": fact.relation.name,
        "prompt": prompt,
        "choices": choices,
        "answer": choices.index(fact.answer),
    }


def _pair_rows(fact: Fact, use: SourceUse) -> Iterator[Row]:
    """Yield the pairs of a fact: one of each group to train on, or each group in every unseen advice phrasing."""
    advice = _ordered_indices(fact, "advice")
    for group in PAIR_GROUPS:
        heldout = use.split == "heldout_pairs"
        used = advice[NUM_ADVICE_TRAINED:] if heldout else (_pick(advice, use.seed, "pair", fact.id, group),)
        for index in used:
            row_id, prompt = _ask(fact, "advice", index)
            key = (use.seed, row_id, group)
            safe = _pick(closings(fact.relation.family, "safe"), *key, "safe")
            yield {
                "id": f"{row_id}/{group}",
                "group": group,
                "prompt": prompt,
                "chosen": f"{fact.answer} {safe}",
                "rejected": _rejected(fact, group, safe, key),
            }


def _rejected(fact: Fact, group: str, safe: str, key: tuple[object, ...]) -> str:
    if group == "wrong":
        return f"{_pick(wrong_answers(fact), *key, 'wrong')} {safe}"
    line = _pick(closings(fact.relation.family, group), *key, "line")
    return f"{fact.answer} {line}" if group == "unsafe" else line


SOURCE = Source(
    name=NAME,
    description="Textbook facts on drugs, organisms, laboratory values and terms, generated from embedded tables.",
    licence="Apache-2.0 (generated by this project)",
    splits=SPLITS,
    rows=rows,
    to_record=to_record,
    evaluation_only=("heldout_questions", "heldout_answers", "heldout_pairs"),
    question=lambda row: "/".join(row.split("/")[:2]),  # the fact
)
