"""Which rows no training row may come from, decided from the recipe alone.

That every data stage is compared with the same list, on every machine and at every time, keeps keys still: a list that
followed what the hub's cache holds today would train everything again after an unrelated download. So:

1. what the recipe evaluates on: `evaluate.preferences`, `evaluate.conversations`, the sources of its tasks and of its answers, and
   the registered sets whose rows lm-eval's own tasks ask;
2. every entry under `sources` that is a split for evaluation only, whether it is used or not;
3. `benchmarks`: the sets that the recipe names or, where it reads anything from the hub and so can read these too, all
   of `BENCHMARKS`. A recipe of local files alone has no way to them, and `rounds plan` says that they are missing.
"""

import re
from dataclasses import dataclass

from rounds.data_prep import sources
from rounds.data_prep.errors import UserError, nearest
from rounds.data_prep.schema import SourceUse
from rounds.train.config.recipe import Hub, Recipe

BENCHMARKS = ("medqa", "medmcqa", "pubmedqa", "mmlu_medical", "headqa", "ultrafeedback", "snorkel")
"""The medical exams that clinical models are compared on, and the held-out splits of the preference sets."""
SPLITS = {"pubmedqa": ("test",), "mmlu_pro": ("test",), "xstest": ("test",)}
"""Splits that are the benchmark, where another split for evaluation only holds other rows too, or the same."""
_ASKED_BY = (
    ("medqa", re.compile(r"medqa_4options|multimedqa")),
    ("medmcqa", re.compile(r"medmcqa|multimedqa")),
    ("pubmedqa", re.compile(r"pubmedqa|multimedqa")),
    ("headqa", re.compile(r"headqa(_en)?")),
    ("mmlu_medical", re.compile(r"multimedqa|mmlu(_(continuation|generative|stem|other|social_sciences|humanities))*|"
                                r"mmlu_(anatomy|clinical_knowledge|nutrition|virology|high_school_(biology|psychology)|"
                                r"human_(aging|sexuality)|(college|professional)_(biology|medicine|psychology)|"
                                r"medical_genetics)(_\w+)?")),
    ("mmlu_pro", re.compile(r"(leaderboard_)?mmlu_pro(_\w+)?")),
    ("toxigen", re.compile(r"toxigen")),
    ("gsm8k", re.compile(r"gsm8k([_-]\w[\w-]*)?")),
    ("ifeval", re.compile(r"(leaderboard_)?ifeval")),
)  # fmt: skip
"""Registered sets, and the names of lm-eval's tasks and groups that ask their rows."""


@dataclass(frozen=True)
class HeldOut:
    """The sets that training is compared with, by name, and what could not be among them."""

    uses: dict[str, SourceUse]
    missing: tuple[str, ...]
    """Benchmarks whose rows this recipe has no way to."""
    unknown_tasks: tuple[str, ...]
    """Tasks of lm-eval that bring rows which no registered source holds."""


def told(found: HeldOut, compared: list[str], not_compared: list[str]) -> list[str]:
    """Say what these training sets are compared with, and warn of what they are not compared with, one line each."""
    lines = []
    if compared and found.uses:
        lines.append(f"decontaminate: {', '.join(compared)} against {', '.join(found.uses)}")
    if not_compared:
        lines.append(f"warning: no filter `decontaminate` for {', '.join(not_compared)}")
    if compared and found.missing:
        lines.append(
            f"warning: not compared with {', '.join(found.missing)}, whose rows are not at hand: give them under `sources` "
            f"with `path:`, or write `benchmarks: [{', '.join(found.missing)}]` to fetch them from the hub"
        )
    if compared and found.unknown_tasks:
        lines.append(f"warning: not compared with the rows of lm-eval's {', '.join(found.unknown_tasks)}: no registered source has them")
    return lines


def held_out(recipe: Recipe) -> HeldOut:
    """List what no training row may come from. Raises `UserError` for a benchmark that is not registered."""
    uses = {name: recipe.sources[name] for name in _evaluated(recipe) if name in recipe.sources}
    uses |= {name: use for name, use in recipe.sources.items() if _is_evaluation_only(use)}
    tasks = [task.task for task in recipe.evaluate.tasks if not task.source] if recipe.evaluate else []
    asked = {task: [name for name, pattern in _ASKED_BY if pattern.fullmatch(task)] for task in tasks}
    named = recipe.benchmarks if recipe.benchmarks is not None else BENCHMARKS if _reads_hub(recipe) else ()
    for name in dict.fromkeys([*(name for names in asked.values() for name in names), *named]):
        uses |= {f"{name}.{split}": use for split, use in _splits(name).items() if not _covered(use, uses)}
    held = {use.source for use in uses.values()}
    missing = [] if recipe.benchmarks is not None else [name for name in BENCHMARKS if name not in held]
    return HeldOut(uses, tuple(missing), tuple(task for task, names in asked.items() if not names))


def _evaluated(recipe: Recipe) -> list[str]:
    evaluate = recipe.evaluate
    if evaluate is None:
        return []
    answered = [each.source for each in evaluate.answers]
    named = [*(task.source for task in evaluate.tasks), *evaluate.preferences, evaluate.conversations, *answered]
    return [name for name in dict.fromkeys(named) if name]


def _is_evaluation_only(use: SourceUse) -> bool:
    return use.source in sources.names() and use.split in sources.load(use.source).evaluation_only


def _reads_hub(recipe: Recipe) -> bool:
    hub = [use for use in recipe.sources.values() if not use.path and use.source in sources.names() and sources.load(use.source).repository]
    return bool(hub) or isinstance(recipe.base, Hub)


def _splits(name: str) -> dict[str, SourceUse]:
    if name not in sources.names() or not sources.load(name).evaluation_only:
        valid = [each for each in sources.names() if sources.load(each).evaluation_only and sources.load(each).repository]
        raise UserError(f"benchmarks: no registered set {name!r} with a split for evaluation only. {nearest(name, valid)}")
    splits = SPLITS.get(name, sources.load(name).evaluation_only)
    return {split: SourceUse(source=name, split=split) for split in splits}


def _covered(use: SourceUse, uses: dict[str, SourceUse]) -> bool:
    """Tell whether all of a split is there already, wherever its rows come from."""
    whole = {(each.source, each.split) for each in uses.values() if each.max_rows is None}
    return (use.source, use.split) in whole or (use.source == "pubmedqa" and ("pubmedqa", "labeled") in whole)
