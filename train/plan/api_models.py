"""Models behind endpoints, measured by what they write: their names, and the stages of one.

In: `api:ENDPOINT/MODEL`, an endpoint of the cluster file and what it calls the model. Out: the stage that holds its scores. There are no
likelihoods of such a model, so of an evaluation only what is answered freely is measured; all else is not available.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import stable_hash
from rounds.train.config.evaluation import Evaluate
from rounds.train.config.recipe import Recipe
from rounds.train.engine import kinds
from rounds.train.engine.graph import Stage
from rounds.train.engine.params import ApiAnswersParams, EvaluateParams
from rounds.train.plan import held_out, rows
from rounds.train.plan.rows import Planning

PREFIX = "api:"


@dataclass(frozen=True)
class Spending:
    """What asking one model may cost, and whether prompts may be sent to another machine."""

    allow_outside: bool = False
    max_calls: int = 10_000
    max_tokens: int = 10_000_000


LITTLE = Spending()


def scores(recipe: Recipe, root: Path, recipe_folder: Path, name: str, spending: Spending) -> Stage:
    """Plan the measuring of a model, by its name. Raises `UserError` for a name of another form, and where nothing is written freely."""
    endpoint, slash, model = name.removeprefix(PREFIX).partition("/")
    if not (endpoint and slash and model):
        raise UserError(f"{name}: expected api:ENDPOINT/MODEL, an endpoint of the cluster file and what it calls the model")
    evaluate = recipe.evaluate or Evaluate()
    if not evaluate.answers:
        raise UserError(
            f"{name}: a model behind an endpoint is measured by what it writes, and {recipe.name} lets nothing be written "
            "(`evaluate.answers`): name a suite that does, such as --suite use_cases"
        )
    planning = Planning(recipe, root, recipe_folder, True, held_out.held_out(recipe))
    sets, prompts = rows.answer_sets(planning, evaluate.answers)
    asked = ApiAnswersParams(model=model, sets=sets, seed=recipe.seed, endpoint=endpoint, **asdict(spending))
    label = f"api-{stable_hash(name):016x}"[:12]  # a model's name may hold anything
    answers = Stage(f"answers.{label}", kinds.API_ANSWERS, asked, dict(prompts))
    averages = {average: each.mean_of for average, each in evaluate.averages.items()}
    measured = EvaluateParams(tasks=(), max_length=evaluate.max_length, averages=averages, too_long=evaluate.too_long)
    return Stage(f"evaluate.{label}", kinds.EVALUATE_API, measured, {"answers": answers, **prompts})
