"""Which column may be meant where one is missing, and the mapping to copy into a recipe.

In: what a recipe says of a source, and the columns of a row that did not fit. Out: a sentence, or nothing where no name is near.
"""

import difflib
import json
import re
from collections.abc import Sequence

from rounds.data_prep import columns
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Source

_ALSO = {
    "text": ("text", "document", "article", "report", "note", "body", "content", "passage", "abstract", "sentence"),
    "summary": ("summary", "highlights", "abstract", "target", "impression", "conclusion"),
    "dialogue": ("dialogue", "dialog", "conversation", "transcript", "src"),
    "note": ("note", "section_text", "summary", "tgt", "target"),
    "label": ("label", "class", "category", "target", "intent"),
    "choices": ("choices", "options", "candidates", "endings"),
    "answer": ("answer_idx", "answer_index", "label", "cop", "target", "gold", "correct"),
    "answers": ("answers", "completions", "responses", "candidates", "outputs"),
    "prompt": ("query", "q", "user"),
    "chosen": ("good", "winner", "response_chosen", "answer_chosen"),
    "rejected": ("bad", "loser", "response_rejected", "answer_rejected"),
}
"""Names that public sets have for our columns, beside those that `rounds init` recognises, the likeliest first."""
# difflib's own cutoff; of `answr`, `Antwort`, `queston`, `replies` it takes all that start alike and no other name of a column.
_NEAR = 0.6
_SHOWN = 80


def mapping(origin: Source, use: SourceUse, found: Sequence[str]) -> str:
    """Return "perhaps answer is reply: `columns: {answer: reply}`" for columns that are missing, or "" where no name is near."""
    expected = origin.columns_of(use)
    missing = [ours for ours in expected if ours not in found]
    free = [name for name in found if name not in expected and len(name) <= _SHOWN]
    near: dict[str, str] = {}
    for ours in missing:
        if name := _nearest(ours, [each for each in free if each not in near.values()]):
            near[ours] = name
    other = _other_format(use, found) if origin.kind_by_format and len(near) < len(missing) else ""
    if other or not near:
        return other
    # Alpaca's input is part of what is asked: as question and answer it would be lost.
    is_alpaca = use.format == "question_answer" and (columns.recognised(found) or ("",))[0] == "alpaca"
    first = "These are the columns of format alpaca, which asks with the input too. Else " if is_alpaca else ""
    said = first + ("perhaps " if first else "Perhaps ") + ", ".join(f"{ours} is {_word(theirs)}" for ours, theirs in near.items())
    if not origin.kind_by_format:  # its columns are in code
        return f"{said}: the set is of another version than the one that source {use.source!r} reads"
    kept = {ours: theirs for ours, theirs in use.columns.items() if ours not in missing}
    named = ", ".join(f"{ours}: {_word(theirs)}" for ours, theirs in {**kept, **near}.items())
    return f"{said}; then say in the recipe `columns: {{{named}}}`"


def _nearest(ours: str, names: Sequence[str]) -> str | None:
    plain = {re.sub(r"\W+", "_", name.strip().lower()).strip("_"): name for name in reversed(names)}
    known = [*(each for table in columns.NAMES.values() for each in table.get(ours, ())), *_ALSO.get(ours, ())]
    if name := next((each for each in known if each in plain), None):
        return plain[name]
    close = difflib.get_close_matches(ours, plain, n=1, cutoff=_NEAR)
    parts = [name for name in plain if ours in name.split("_")]
    return plain[(close or parts)[0]] if close or parts else None


def _other_format(use: SourceUse, found: Sequence[str]) -> str:
    """Name the format whose columns all are there under our names or a usual one."""
    layout = columns.recognised(found)
    # A single answer with a label, as KTO has it, is no answer to learn from where the label says so.
    if layout is None or layout[0] == use.format or (use.format == "preference" and "label" in found):
        return ""
    named = ", ".join(f"{ours}: {_word(theirs)}" for ours, theirs in layout[1].items() if ours != theirs)
    return f"It looks like `format: {layout[0]}`" + (f" with `columns: {{{named}}}`" if named else "")


def _word(name: str) -> str:
    """Write a name as YAML reads it back, in quotes where it is not a plain word."""
    return name if re.fullmatch(r"[A-Za-z_][\w-]*", name, re.ASCII) and name.lower() not in _YAML_WORDS else json.dumps(name)


_YAML_WORDS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))
