"""Whether an answer is right word for word, or by its number: the rules of lm-eval's tasks, on texts.

In: an answer and what is right. Out: true or false, equal to lm-eval's own on the same texts (tests/train/evaluation/test_exact.py).
"""

import re
import string

_PUNCTUATION = str.maketrans("", "", string.punctuation)
# As lm-eval's task gsm8k has them (Cobbe et al. 2021): the answer's own mark, and the last number wherever it stands.
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = re.compile(r"(?s:.*#### )|,|\$|\.$")
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")


def choice(answer: str, right: str) -> bool:
    """Tell whether an answer's first paragraph is the right text, but for case and punctuation, as the task `free_answer` does."""
    return _folded(answer.strip().split("\n\n")[0]) == _folded(right)


def is_number(right: str) -> bool:
    """Tell whether what is right is a number, as GSM8K's last line is."""
    return _NUMBER.fullmatch(right.strip()) is not None


def number(answer: str, right: str) -> bool:
    """Tell whether the last number of an answer is the right one: gsm8k's `flexible-extract`."""
    found = _FLEXIBLE.findall(answer)
    return bool(found) and _plain((found[-1][0] or found[-1][1]).strip()) == _plain(right)


def number_marked(answer: str, right: str) -> bool:
    """Tell whether the number after the answer's first `#### ` is the right one: gsm8k's `strict-match`."""
    found = _STRICT.search(answer)
    return found is not None and _plain(found[1].strip()) == _plain(right)


def _folded(text: str) -> str:
    return text.strip().lower().translate(_PUNCTUATION)


def _plain(text: str) -> str:
    return _IGNORED.sub("", text).lower()
