"""The stages that set each round's answers against another policy's, and what is refused of them and of gates on their win rates."""

from collections.abc import Mapping

from rounds.data_prep import sources
from rounds.data_prep.errors import UserError, nearest
from rounds.train.config.evaluation import Evaluate, Gate, Judged, Rule
from rounds.train.config.judging import Verifiable, Weights
from rounds.train.config.metrics import WIN_RATES
from rounds.train.config.recipe import Recipe
from rounds.train.config.reward import RecipeJudge
from rounds.train.config.training import Round
from rounds.train.engine import kinds, params
from rounds.train.engine.graph import Asset, Stage
from rounds.train.plan import judges
from rounds.train.plan.rows import Planning

_KNOWN_ANSWERS = ("question", "prompt")
"""Kinds of records that may say what is right."""


def stages(
    planning: Planning, item: Round, policies: Mapping[str, Stage], start: Stage, evaluations: Mapping[str, Stage]
) -> dict[str, Stage]:
    """Return the comparisons of a round's new policy by name. `policies` are those that there were before it, `start` the one that it
    started from, and `evaluations` those of all policies that were trained so far, the round's own among them."""
    evaluate = planning.recipe.evaluate or Evaluate()
    found = {}
    for each in evaluate.judged:
        if each.answers in evaluate.absent:
            continue
        where = f"evaluate.judged.{each.name}"
        check(planning.recipe, each)
        new = _answers(evaluations[item.name])
        inputs = {"answers": new, "prompts": new.inputs[f"prompts.{each.answers}"], **_against(each, start, evaluations)}
        inputs |= judges.inputs(planning, each.by, policies)
        judge = judges.section(planning, each.by, f"{where}.by")
        kind = kinds.JUDGE_MODEL if judges.loads_weights(judge) else kinds.JUDGE
        asked = params.JudgeParams(metric=each.name, answers=each.answers, judge=judge, name=each.by)
        found[each.name] = Stage(f"judge.{item.name}.{each.name}", kind, asked, inputs)
    return found


def check(recipe: Recipe, each: Judged) -> None:
    """Refuse a comparison of what nobody answers, by nobody, or with a policy that there is not."""
    where, evaluate = f"evaluate.judged.{each.name}", recipe.evaluate or Evaluate()
    answers = next((answers for answers in evaluate.answers if answers.name == each.answers), None)
    if answers is None:
        known = [answers.name for answers in evaluate.answers]
        there = nearest(each.answers, known) if known else "There is none"
        raise UserError(f"{where}.answers: no set of answers is named {each.answers!r} under `evaluate.answers`. {there}")
    judge = judges.named(recipe, each.by, f"{where}.by")
    if each.against == "sft" and recipe.sft is None:
        raise UserError(f"{where}.against: the recipe has no sft; expected `previous` or `base`")
    use = recipe.sources.get(answers.source)
    kind = sources.load(use.source).kind(use) if use is not None else None
    if isinstance(judge, Verifiable) and kind is not None and kind not in _KNOWN_ANSWERS:
        raise UserError(
            f"{where}.by: {each.by!r} asks whether an answer is the right one, and {answers.source!r} holds {kind}s, which know none: take "
            "another judge, or a set of questions"
        )


def unused(recipe: Recipe) -> None:
    """Refuse comparisons in a recipe without rounds: it has nothing to compare."""
    if recipe.evaluate and recipe.evaluate.judged and not recipe.rounds:
        raise UserError("evaluate.judged: it compares the policies of rounds, and the recipe has none")


def of_rule(recipe: Recipe, rule: Rule) -> Judged | None:
    """Return the comparison whose win rate a rule is about, if it is about one."""
    subject = rule.metric.partition("/")[0]
    return next((each for each in (recipe.evaluate or Evaluate()).judged if each.name == subject), None)


def gating(recipe: Recipe, rules: Gate, item: Round, found: Mapping[str, Stage]) -> dict[str, Stage | Asset]:
    """Return the comparisons that a gate's rules are about, as its inputs. Raises `UserError` for a rule that asks what none tells."""
    named: dict[str, Judged] = {}
    for rule in rules.rules:
        if each := of_rule(recipe, rule):
            _check_rule(recipe, rule, each, item)
            named[each.name] = each
    return {f"judged.{name}": found[name] for name in named}


def _check_rule(recipe: Recipe, rule: Rule, each: Judged, item: Round) -> None:
    where, metric = f"gate of round {item.name!r}: metric {rule.metric!r}", rule.metric.partition("/")[2]
    assert recipe.evaluate
    if metric not in WIN_RATES:
        raise UserError(f"{where} is not measured. {nearest(rule.metric, [f'{each.name}/{name}' for name in WIN_RATES])}")
    if each.answers in recipe.evaluate.absent:
        raise UserError(f"{where} cannot be measured: {recipe.evaluate.absent[each.answers]}")
    if rule.condition not in ("at_least", "at_most"):
        raise UserError(
            f"{where}: a win rate compares two policies already, so {rule.condition} says nothing of it: give at_least, such as at_least: "
            "0.5 with beyond: 2"
        )
    ranks = [name for name in (item.rank.by if item.rank else ()) if _same(recipe.judges[name], recipe.judges[each.by])]
    if ranks and not each.also_ranks:
        raise UserError(
            f"{where}: judge {each.by!r} also makes this round's pairs (rounds.{item.name}.rank.by: {', '.join(ranks)}), and a policy that "
            f"learns to please it wins by it: let another judge gate, or say evaluate.judged.{each.name}.also_ranks: true, and the report "
            "says so"
        )


def _same(one: RecipeJudge, other: RecipeJudge) -> bool:
    """Tell whether two names mean one judge, whatever each may cost."""
    places = [(each.path if isinstance(each, Weights) else None, getattr(each, "policy", None)) for each in (one, other)]
    return one.stored() == other.stored() and places[0] == places[1]


def _answers(evaluation: Stage) -> Stage:
    written = evaluation.inputs["answers"]
    assert isinstance(written, Stage)
    return written


def _against(each: Judged, start: Stage, evaluations: Mapping[str, Stage]) -> dict[str, Stage | Asset]:
    """Return whose answers are set against the new ones. Behind a gate that is known only when it has decided."""
    if each.against != "previous":
        return {"against": _answers(evaluations[each.against])}
    if not start.kind.decides:
        return {"against": next(_answers(made) for made in evaluations.values() if made.inputs["policy"] is start)}
    possible = {name: made for name, made in evaluations.items() if made.inputs["policy"] in _passed(start)}
    return {"against_policy": start, **{f"against.{name}": _answers(made) for name, made in possible.items()}}


def _passed(gate: Stage) -> list[Stage]:
    """Return the policies of which a gate lets one through."""
    found: list[Stage] = []
    for name in ("current", "candidate"):
        stage = gate.inputs[name]
        assert isinstance(stage, Stage)
        found += _passed(stage) if stage.kind.decides else [stage]
    return found
