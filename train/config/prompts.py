"""What policies are asked to answer, to be trained on what they say: sets of prompts, in parts."""

from typing import Annotated

from pydantic import model_validator

from rounds.data_prep.schema import Between, FieldError, Filters, Mix, Section


class Prompts(Section):
    """A set of prompts, made of sources of any kind of record: of each what it asks, and the right answer where it says one."""

    data: Mix
    """Sources to take prompts of. Of two that ask the same the first one stays, so name first those with a right answer."""
    parts: Annotated[int, Between(1, 1000, "each is for a round")] = 1
    """Divide the prompts into so many parts that share no question, one for each round; a hash of the question decides."""
    filters: Filters | None = None
    """Filters for these prompts alone; None takes the recipe's. What they lack of `exact_dedup` and `decontaminate` is added: no prompt
    is asked twice, and none of an evaluation is."""

    @model_validator(mode="after")
    def _asked_once(self) -> "Prompts":
        for place, item in enumerate(self.data):
            if item.epochs > 1:
                raise FieldError(f"expected 1 at most, found {item.epochs:g}: a prompt stands in its set once", "data", place, "epochs")
        return self
