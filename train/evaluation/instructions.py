"""Whether an answer follows the instructions of an IFEval prompt (Zhou et al. 2023, arXiv 2311.07911), by lm-eval's own checks.

In: a prompt, the names and arguments of its instructions, and an answer. Out: one truth an instruction, strict. What the checks need of the
environment stands in `rounds.train.engine.ifeval`.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from rounds.data_prep.errors import UserError
from rounds.train.engine import ifeval


def followed(prompt: str, names: Sequence[str], arguments: Sequence[Mapping[str, Any]], answer: str) -> list[bool]:
    """Return whether each instruction is followed, as the answer stands; an empty answer follows none.

    Raises `UserError` where something is missing, or an instruction is unknown.
    """
    checks = _checks()
    unknown = [name for name in names if name not in checks.instructions_registry.INSTRUCTION_DICT]
    if unknown or len(names) != len(arguments):
        raise UserError(f"instructions {list(names)} with {len(arguments)} arguments; lm-eval knows no {unknown or 'such list'}")
    example = checks.InputExample(key=0, instruction_id_list=list(names), prompt=prompt, kwargs=[dict(each) for each in arguments])
    return list(checks.test_instruction_following_strict(example, answer).follow_instruction_list)


def _checks() -> Any:
    if lacking := ifeval.missing():
        raise UserError(lacking)
    # langdetect draws at random unless it is told not to: the same answer would be English in one run and not in the next.
    importlib.import_module("langdetect").DetectorFactory.seed = 0
    return importlib.import_module("lm_eval.tasks.ifeval.utils")
