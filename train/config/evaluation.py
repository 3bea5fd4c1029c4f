"""What a recipe says of measuring a policy: tasks, held-out sets, and the rules by which a gate decides."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from rounds.data_prep.schema import Between, Count, Name, Section, listed
from rounds.train.config.decoding import Decoding

Difference = Annotated[float, Between(0, 1e6, "the sign is in the name of the condition")]


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
    unit: Literal["stderr", "absolute"] = "stderr"
    """Unit of the four differences: standard errors of the paired difference over the same items, or the metric's own."""

    @model_validator(mode="after")
    def _one_condition(self) -> "Rule":
        given = [name for name in self.conditions() if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a rule needs exactly one of {', '.join(self.conditions())}; found {given or 'none'}")
        return self

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


class TaskUse(Section):
    """One lm-eval task."""

    task: str
    """A file in recipes/eval_tasks, or any task or group that lm-eval ships."""
    name: Name | None = None
    """What its scores are called; None takes the task's own name."""
    source: str | None = None
    """For tasks of recipes/eval_tasks: the name under `sources` whose questions are asked."""
    num_fewshot: Annotated[int, Between(0, 1000, "the examples stand before each question, in its length")] = 0
    limit: Count | None = None
    """Ask only the first this many."""

    @property
    def label(self) -> str:
        """The name that heads the task's metrics."""
        return self.name or self.task


def _task(value: Any) -> Any:
    return {"task": value} if isinstance(value, str) else value


class AnswerSet(Decoding):
    """Held-out prompts that every policy answers in its own words."""

    name: Name
    """Heads the metrics of its answers."""
    source: str
    """The name under `sources` whose prompts are answered: of conversations, pairs or questions."""
    max_rows: Count | None = None
    """Answer only so many of its prompts, chosen by a hash of their ids."""
    system_prompt: str | None = None
    """A file whose text is said first where a prompt says nothing first, such as `prompts/medical_assistant.md`."""


class Evaluate(Section):
    """What is measured on the base model, after SFT and after every round."""

    tasks: tuple[Annotated[TaskUse, BeforeValidator(_task)], ...] = ()
    """lm-eval tasks; with the chat template applied, zero-shot unless a task says otherwise."""
    preferences: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    """A source of held-out pairs, or several: share and margin of pairs whose chosen answer the policy finds likelier, of all
    together and, where there are several, of each (`preferences/accuracy/NAME`)."""
    conversations: str | None = None
    """A source of held-out conversations: loss on their answers, in nats per token."""
    answers: tuple[AnswerSet, ...] = ()
    """Sets of held-out prompts that are answered: how long the answers are, whether they end, what they say."""
    max_length: Annotated[int, Between(8, 10_000_000, "a chat template alone takes some tokens, and no model reads more")] = 2048
    """Longest sequence in evaluation, in tokens."""

    @model_validator(mode="after")
    def _labels_differ(self) -> "Evaluate":
        labels = [*(task.label for task in self.tasks), *(each.name for each in self.answers)]
        for label in labels:
            if labels.count(label) > 1 or label in ("preferences", "conversations"):
                raise ValueError(f"two measurements are called {label!r}: give each task and each set of answers a `name` of its own")
        if len(set(self.preferences)) < len(self.preferences):
            raise ValueError(f"preferences: a source stands twice in {', '.join(self.preferences)}")
        return self
