"""The stages of a round that trains on its policy's own answers: `sample`, `rank`, `pairs`, and what is refused of them.

    prompts.NAME --+
                   +-> sample.ROUND -> rank.ROUND.JUDGE -> ... -> pairs.ROUND -> data.ROUND, as one source more
    policy --------+

Each judge has a stage of its own. In a cascade one reads what those before it said, and is asked of what they left open; else all are
asked of everything.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rounds.data_prep.errors import UserError, nearest
from rounds.data_prep.records import stable_hash
from rounds.train.config.judging import PairRules
from rounds.train.config.recipe import Recipe
from rounds.train.config.sampling import SAMPLED, Sampling
from rounds.train.config.training import Round
from rounds.train.engine import kinds, params
from rounds.train.engine.graph import Asset, Stage
from rounds.train.plan import judges, rows
from rounds.train.plan.rows import Planning

_SET = "samples"


@dataclass(frozen=True)
class Around:
    """What stands around a round that is planned."""

    policy: Stage
    """What the round starts from."""
    policies: Mapping[str, Stage]
    """Those of the run so far, by name."""
    base: Stage
    prompts: Mapping[str, Stage]


def check(recipe: Recipe) -> None:
    """Refuse prompts that are not there or that are answered twice, and a `sampled` of nothing. Raises `UserError`."""
    taken: dict[tuple[str, int], str] = {}
    for item in recipe.rounds:
        where = f"rounds.{item.name}"
        names = SAMPLED in (each.name for each in item.data)
        if item.sample is None:
            if names and SAMPLED not in recipe.sources:
                raise UserError(
                    f"{where}.data: {SAMPLED!r} are the pairs of the round's own answers, and the round has no `sample`: say which prompts "
                    "are answered, as in {prompts: NAME, part: 1}, and who ranks the answers under `rank`"
                )
            continue
        if SAMPLED in recipe.sources:
            raise UserError(f"sources.{SAMPLED}: a round's own pairs have this name in its `data`; give the source another")
        _prompts(recipe, item.sample, f"{where}.sample", taken)
        taken[item.sample.prompts, item.sample.part] = item.name
        for name in item.rank.by if item.rank else ():
            judges.named(recipe, name, f"{where}.rank.by")


def _prompts(recipe: Recipe, sample: Sampling, where: str, taken: Mapping[tuple[str, int], str]) -> None:
    known = recipe.prompts
    if sample.prompts not in known:
        raise UserError(
            f"{where}.prompts: no set is named {sample.prompts!r} under `prompts` in the recipe. {nearest(sample.prompts, known)}"
        )
    parts = known[sample.prompts].parts
    if sample.part > parts:
        raise UserError(
            f"{where}.part: found {sample.part}, and prompts.{sample.prompts} has parts: {parts}; raise that, or name one of them"
        )
    if (before := taken.get((sample.prompts, sample.part))) is not None:
        free = [str(each) for each in range(1, parts + 1) if (sample.prompts, each) not in taken]
        way = f"take part {' or '.join(free)}" if free else f"raise prompts.{sample.prompts}.parts"
        raise UserError(
            f"{where}.part: round {before!r} answers part {sample.part} of {sample.prompts} already, and parts are there so that no policy "
            f"is asked again what it was trained on: {way}"
        )


def pairs(planning: Planning, item: Round, place: int, around: Around) -> Stage:
    """Plan the round's own pairs; `place` is its place among the rounds, from 0."""
    assert item.sample and item.rank
    asked = around.prompts[item.sample.prompts]
    sample = _sample(planning, item, place, around, asked)
    read = {"prompts": asked, "samples": sample}
    ranks: dict[str, Stage] = {}
    for name in item.rank.by:
        before = {f"before.{at}": stage for at, stage in enumerate(ranks.values())} if item.rank.how == "cascade" else {}
        ranks[name] = _rank(planning, item, name, around, {**read, **before})
    given = params.PairsParams(rank=item.rank, rules=item.pairs or PairRules(), seed=planning.recipe.seed)
    inputs = {**read, "tokenizer": around.base, **{f"rank.{name}": stage for name, stage in ranks.items()}}
    return Stage(f"pairs.{item.name}", kinds.PAIRS, given, inputs)


def _sample(planning: Planning, item: Round, place: int, around: Around, asked: Stage) -> Stage:
    sampling = item.sample
    assert sampling
    text = rows.system_text(sampling.system_prompt, f"rounds.{item.name}.sample") if sampling.system_prompt else None
    decoding = sampling.model_dump(exclude={"prompts", "system_prompt"})
    wanted = params.PromptSet.model_validate({**decoding, "name": _SET, "max_rows": None, "system_prompt": text})
    seed = stable_hash("sample", planning.recipe.seed, place)
    given = params.AnswersParams(sets=(wanted,), max_length=item.max_length, seed=seed)
    return Stage(f"sample.{item.name}", kinds.SAMPLE, given, {"policy": around.policy, f"prompts.{_SET}": asked})


def _rank(planning: Planning, item: Round, name: str, around: Around, read: Mapping[str, Stage]) -> Stage:
    judge = judges.section(planning, name, f"rounds.{item.name}.rank.by")
    inputs: dict[str, Stage | Asset] = {**read, **judges.inputs(planning, name, around.policies)}
    kind = kinds.RANK_MODEL if judges.loads_weights(judge) else kinds.RANK
    return Stage(f"rank.{item.name}.{name}", kind, params.RankParams(judge=judge, name=name), inputs)
