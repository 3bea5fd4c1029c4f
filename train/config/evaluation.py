"""What a recipe says of measuring a policy: tasks, held-out sets, and the rules by which a gate decides."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from rounds.data_prep.schema import Between, Count, FieldError, Later, Name, Section, listed
from rounds.train.config.decoding import Decoding

Difference = Annotated[float, Between(0, 1e6, "the sign is in the name of the condition")]
MIN_ITEMS = 30
"""With fewer questions the normal approximation of a mean is not trusted and no verdict is given: the usual rule of thumb."""
TooFew = Literal["accept", "reject", "stop"]


class Rule(Section):
    """One condition on one metric, comparing the round's new policy with the one it started from."""

    metric: str
    """`task/metric` as in scores.json: `clinic_facts/acc`, `preferences/accuracy`, `conversations/loss`, ..."""
    may_fall_by: Difference | None = None
    may_rise_by: Difference | None = None
    must_rise_by: Difference | None = None
    must_fall_by: Difference | None = None
    at_least: float | None = None
    """The new policy's own value, whatever the old one's."""
    at_most: float | None = None
    beyond: Annotated[Difference | None, Later(None)] = None
    """With `at_least` or `at_most`: how many standard errors of the value the bound must be passed by. None asks for the value alone."""
    unit: Literal["stderr", "absolute", "relative"] = "stderr"
    """Unit of the four differences: standard errors of the paired difference over the same items, the metric's own, or shares of the old
    value (0.15 is 15 % of it)."""

    @model_validator(mode="after")
    def _one_condition(self) -> "Rule":
        given = [name for name in self.conditions() if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a rule needs exactly one of {', '.join(self.conditions())}; found {given or 'none'}")
        if self.beyond is not None and given[0] not in ("at_least", "at_most"):
            raise ValueError(f"`beyond` goes with at_least or at_most; {given[0]} says by how much itself")
        if self.unit == "relative" and given[0] in ("at_least", "at_most"):
            raise ValueError(f"`unit` is that of a difference; {given[0]} bounds the value itself: take it out")
        return self

    @property
    def condition(self) -> str:
        """The name of the one field that it sets."""
        return next(name for name in self.conditions() if getattr(self, name) is not None)

    @staticmethod
    def conditions() -> tuple[str, ...]:
        """Name the fields of which a rule sets exactly one."""
        return ("may_fall_by", "may_rise_by", "must_rise_by", "must_fall_by", "at_least", "at_most")


class Gate(Section):
    """Decides after a round whether its policy goes on."""

    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]
    """The new policy is accepted when all hold."""
    on_reject: Literal["continue", "stop"] = "continue"
    """`continue`: the next round starts from the policy before this round. `stop`: later rounds are skipped."""
    too_few: Annotated[TooFew, Later("stop")] = "stop"
    """What becomes of a rule over fewer than 30 questions, which cannot decide: `accept` and `reject` take it as holding or not, and say
    so; `stop` ends the run, and before it starts where the recipe alone tells the number."""


class TaskUse(Section):
    """One task."""

    task: str
    """`choice_likelihood`, a file in recipes/eval_tasks, or any task or group that lm-eval ships."""
    name: Name | None = None
    """What its scores are called; None takes the task's own name."""
    source: str | None = None
    """For `choice_likelihood` and tasks of recipes/eval_tasks: the name under `sources` whose questions are asked."""
    num_fewshot: Annotated[int, Between(0, 1000, "the examples stand before each question, in its length")] = 0
    limit: Count | None = None
    """Ask only the first this many."""
    optional: Annotated[bool, Later(False)] = False
    """Left out where the rows of its source are the user's own and are not given: its scores are then not available."""

    @property
    def label(self) -> str:
        """The name that heads the task's metrics."""
        return self.name or self.task


def _task(value: Any) -> Any:
    return {"task": value} if isinstance(value, str) else value


class Average(Section):
    """A score that is the mean of other scores, each counting as much."""

    mean_of: Annotated[tuple[str, ...], Field(min_length=1)]
    """Metrics (`medqa/acc`, `mmlu/acc/anatomy`) and other averages. Where one was not measured there is no average."""

    @model_validator(mode="after")
    def _parts_differ(self) -> "Average":
        for part in self.mean_of:
            if self.mean_of.count(part) > 1:
                raise FieldError(f"{part} stands twice: each counts as much", "mean_of")
        return self


class Published(Section):
    """Scores of other models, as a publication prints them."""

    source: str
    """The publication, and where in it."""
    protocol: str
    """How they were measured, as far as it is told: what ours can be compared with."""
    columns: tuple[str, ...]
    """Our metrics and averages that stand for its columns, in their order."""
    rows: dict[str, tuple[Annotated[float, Between(0, 100, "a score in percent")] | None, ...]]
    """Model -> its scores in percent, one a column; null where none is given."""

    @model_validator(mode="after")
    def _rows_are_whole(self) -> "Published":
        for name, row in self.rows.items():
            if len(row) != len(self.columns):
                raise FieldError(f"has {len(row)} scores, expected {len(self.columns)}: one for each of columns", "rows", name)
        return self


class AnswerSet(Decoding):
    """Held-out prompts that every policy answers in its own words."""

    name: Name
    """Heads the metrics of its answers."""
    source: str
    """The name under `sources` whose prompts are answered: of conversations, pairs, questions or prompts."""
    max_rows: Count | None = None
    """Answer only so many of its prompts, chosen by a hash of their ids."""
    system_prompt: str | None = None
    """A file whose text is said first where a prompt says nothing first, such as `prompts/medical_assistant.md`."""
    optional: Annotated[bool, Later(False)] = False
    """Left out where the rows of its source are the user's own and are not given."""


class Judged(Section):
    """Each round's answers to a set of held-out prompts, compared with another policy's by a judge."""

    name: Name
    """Heads its metrics: `NAME/winrate`, and `NAME/winrate_lc` at equal length."""
    answers: str
    """The set under `evaluate.answers` that is compared."""
    by: str
    """The name under `judges` of who compares. Rules read no answers and single scores know no places; the others are asked in both
    orders."""
    against: Literal["previous", "base", "sft"] = "previous"
    """Whose answers the round's are compared with; `previous`: those of the policy that the round started from."""
    also_ranks: bool = False
    """The judge may gate a round though it made the round's pairs: a policy that learnt to please it wins by it, so the report says so.
    Without this such a gate is refused."""


class Evaluate(Section):
    """What is measured on the base model, after SFT and after every round."""

    tasks: tuple[Annotated[TaskUse, BeforeValidator(_task)], ...] = ()
    """Tasks; with the chat template applied, zero-shot unless a task says otherwise."""
    preferences: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    """A source of held-out pairs, or several: share and margin of pairs whose chosen answer the policy finds likelier, of all
    together and, where there are several, of each (`preferences/accuracy/NAME`)."""
    conversations: str | None = None
    """A source of held-out conversations: loss on their answers, in nats per token."""
    answers: tuple[AnswerSet, ...] = ()
    """Sets of held-out prompts that are answered: how long the answers are, whether they end, what they say."""
    judged: Annotated[tuple[Judged, ...], Later(())] = ()
    """Comparisons of each round's answers with those of another policy, by judges: win rates, which gates may rule on."""
    max_length: Annotated[int, Between(8, 10_000_000, "a chat template alone takes some tokens, and no model reads more")] = 2048
    """Longest sequence in evaluation, in tokens."""
    too_long: Literal["drop", "fail"] = "drop"
    """A question, pair or conversation that is longer, with what is scored or may be written after it: `drop` leaves it out and counts it,
    `fail` ends the evaluation before anything is scored."""
    suites: Annotated[tuple[str, ...], BeforeValidator(listed), Later(())] = ()
    """Names of files in recipes/suites, whose sources, tasks, answers and averages are laid beneath the recipe's own."""
    averages: Annotated[dict[Name, Average], Later({})] = Field(default_factory=dict)
    """Means of scores, which are scores like any other: with an error, in gates and in the report."""
    published: Annotated[Published | None, Later(None)] = None
    """What a publication reports of other models, shown beside the own scores."""
    absent: Annotated[dict[str, str], Later({})] = Field(default_factory=dict)
    """Optional tasks and sets of answers that are left out, and why; filled when the recipe is read."""

    @model_validator(mode="after")
    def _labels_differ(self) -> "Evaluate":
        labels = [*(task.label for task in self.tasks), *(each.name for each in (*self.answers, *self.judged))]
        for label in labels:
            if labels.count(label) > 1 or label in ("preferences", "conversations"):
                raise ValueError(
                    f"two measurements are called {label!r}: give each task, each set of answers and each comparison a `name` of its own"
                )
        for field, named in (("preferences", self.preferences), ("suites", self.suites)):
            if len(set(named)) < len(named):
                raise FieldError(f"one name stands twice in {', '.join(named)}", field)
        return self

    @model_validator(mode="after")
    def _averages_end(self) -> "Evaluate":
        for name in self.averages:
            if name in {*(task.label for task in self.tasks), *(each.name for each in (*self.answers, *self.judged))}:
                raise FieldError("a task has this name, or a set of answers: give the average another", "averages", name)
            ring = _ring(name, self.averages, ())
            if ring:
                raise FieldError(f"is a mean of itself: {' -> '.join(ring)}", "averages", name)
        return self


def _ring(name: str, averages: Mapping[str, Average], inside: tuple[str, ...]) -> tuple[str, ...]:
    """Return the averages by which one leads back to itself, or nothing."""
    if name in inside:
        return (*inside, name)
    return next((ring for part in averages[name].mean_of if part in averages and (ring := _ring(part, averages, (*inside, name)))), ())
