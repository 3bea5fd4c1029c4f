"""What a clinical text says is absent, and on which side it says that something is: what of it an answer keeps, and what it turns round.

In: texts. Out: the words that stand under a negation, those that do not, and the sides of words; shares of them. A rule in the manner of
NegEx (Chapman et al. 2001): a negation reaches to the end of its clause, or to a word that begins another statement; after "not", three
words. Words are compared, not meanings: "afebrile" and "no fever" have nothing in common here, and a word that a text both has and denies
contradicts nothing.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple


class Findings(NamedTuple):
    """Words of a text, and whether they are denied (True), said (False) or both; and the sides that words are given."""

    denied: dict[str, set[bool]]
    sides: dict[str, set[str]]


class Kept(NamedTuple):
    """What became of a reference's findings in an answer: shares, None where the reference has none."""

    negations: float | None
    """Of the words that the reference only denies, those that the answer denies too."""
    sides: float | None
    """Of the words to which the reference gives a side, those to which the answer gives it too."""
    contradictions: float | None
    """Of the words that both have and at least one denies, or gives a side, those that say the opposite; 0 where there is none."""


def kept(reference: str, answer: str) -> Kept:
    """Compare an answer with a reference."""
    asked, given = findings(reference), findings(answer)
    denied = [word for word, said in asked.denied.items() if said == {True}]
    negations = sum(True in given.denied.get(word, ()) for word in denied) / len(denied) if denied else None
    sides = sum(bool(of & given.sides.get(word, set())) for word, of in asked.sides.items()) / len(asked.sides) if asked.sides else None
    if not denied and not asked.sides:
        return Kept(None, None, None)
    told = [(said, given.denied[word]) for word, said in asked.denied.items() if word in given.denied]
    opposite = [not one & two for one, two in told if {True} in (one, two)]
    opposite += [not of & given.sides[word] for word, of in asked.sides.items() if word in given.sides]
    return Kept(negations, sides, sum(opposite) / len(opposite) if opposite else 0.0)


def findings(text: str) -> Findings:
    """Find the words of a text that are denied or said, and the sides of words."""
    found = Findings(defaultdict(set), defaultdict(set))
    for clause in _CLAUSE.split(text.replace("’", "'").lower()):
        words = _WORD.findall(clause)
        for word, is_denied in _denials(words):
            found.denied[word].add(is_denied)
        for word, side in _sides(words):
            found.sides[word].add(side)
    return Findings(dict(found.denied), dict(found.sides))


def _denials(words: list[str]) -> Iterator[tuple[str, bool]]:
    before: list[str] = []
    left = 0  # how many more words are denied
    for place, word in enumerate(words):
        last = words[place - 1] if place else ""
        if word in _LISTS or (word == "negative" and words[place + 1 : place + 2] == ["for"]) or word == "free":
            left = len(words)
        elif word in _NOT or word.endswith("n't"):
            left = max(left, 3)
        elif word in _ENDS:
            left = left if last in _LISTS or last in _NOT or last.endswith("n't") else 0  # "has not had", "denies having"
        elif word in _BACK and last in _BE:
            yield from ((each, True) for each in before)
            before = []
        elif content := _content(word):
            if left:
                yield content, True
                left -= 1
            else:
                before.append(content)
    yield from ((each, False) for each in before)


def _sides(words: list[str]) -> Iterator[tuple[str, str]]:
    for place, word in enumerate(words):
        following = words[place + 1 : place + 4]
        side = _SIDES.get(word)
        if (
            side is None
            or (word in ("left", "right") and following[:1] and following[0] in _NO_SIDE)
            or words[place - 1 : place] == ["all"]
        ):
            continue
        if not following or not _content(following[0]):  # "on the left.", "on the left and ..."
            following = words[max(0, place - 5) : place]
        for each in following:
            if each in _SIDES:
                break
            if content := _content(each):
                yield content, side


def _content(word: str) -> str:
    """Return a word without the s of its plural; nothing where it is no finding."""
    if len(word) < 3 or word in _LITTLE or word in _SIDES:
        return ""
    return word[:-1] if len(word) > 4 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_CLAUSE = re.compile(r"[.!?](?=\s|$)|[;:\n•()]|\b(?:but|however|although|though|except|otherwise)\b")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_LISTS = _set("no denies denied deny denying without nor neither")
_NOT = _set("not never cannot non none")
_BACK = _set("negative absent denied ruled")
_BE = _set("is are was were be been being came comes remains")
_ENDS = _set("""has had have having reports reported endorses endorsed complains complained admits presents presented notes noted states
    stated which
    who because since secondary will would should recommend recommended continue positive""")
_SIDES = {"left": "left", "right": "right", "bilateral": "both", "bilaterally": "both"}
# After these, left is a verb and right an adverb.
_NO_SIDE = _set("now away after before here there the a an his her their my our it untreated alone at")
_LITTLE = (
    _LISTS
    | _NOT
    | _BE
    | _set("""the and for from with that this these those there any all some other than then when while where into onto over under after
    before
    during about above below her his him she they them their its our your you may can could does did doing done only also more most less
    very much such each both either out off per via due well patient patients today currently current time times recent significant
    evidence history signs sign symptoms symptom associated""")
)
