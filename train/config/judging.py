"""What a recipe says of judges, and of the rules by which pairs are made of what they say."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from rounds.data_prep.schema import Beside, Between, FieldError, Section, listed

Share = Annotated[float, Between(0, 1, "it is a share")]
_Length = Annotated[int, Between(8, 10_000_000, "a chat template alone takes some tokens, and no model reads more")]
_Licence = Annotated[str, Field(min_length=1)]


class Verifiable(Section):
    """Right or wrong, by what is known of the right answer: 1 or 0. A prompt of which nothing is known has no score."""

    kind: Literal["verifiable"]
    match: Literal["choice", "exact", "number"]
    """`choice`: the answer names one of the prompt's choices, by its text or its letter, and it is the right one. `exact`: the answer's
    first paragraph is the right text, but for case and punctuation. `number`: its last number is the right one."""
    max_missing_share: Annotated[Share, Beside()] = 1.0
    """Above this share of answers without a score the stage stops. All of them may be: prompts without a known answer are no failure."""


class Weights(Section):
    """A judge whose weights are read: from the hub at a commit, or from a folder."""

    id: str | None = None
    """Repository on the hub, such as `Skywork/Skywork-Reward-V2-Qwen3-8B`; needs `revision`."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """Full commit hash. A branch name would let the same recipe mean another judge."""
    path: Annotated[str | None, Beside()] = None
    """A model folder on this machine instead; relative to the recipe. Its content, not its path, is part of the stage key."""
    licence: Annotated[_Licence | None, Beside()] = None
    """Licence of the judge's weights, such as `Apache-2.0`: it goes on the card of what was trained with its verdicts."""
    max_missing_share: Annotated[Share, Beside()] = 0.0
    """Above this share of answers without a score the stage stops and says why."""

    @model_validator(mode="after")
    def _one_place(self) -> "Weights":
        if (self.id is None) == (self.path is None):
            given = "neither" if self.id is None else "both"
            raise ValueError(f"a judge with weights needs `id` with `revision`, or `path`; found {given}")
        if self.id is not None and self.revision is None:
            raise FieldError(f"needs the full commit of {self.id}: a branch would let the same recipe mean another judge", "revision")
        if self.path is not None and self.revision is not None:
            raise FieldError("goes with `id`; a folder enters the key by its content", "revision")
        return self


class RewardModel(Weights):
    """A sequence classifier with one label, which scores an answer by itself."""

    kind: Literal["reward_model"]
    max_length: _Length = 4096
    """Longest input, prompt and answer as the judge's chat template writes them, in its tokens; longer ones are cut at their end and
    counted."""


class Pairwise(Weights):
    """PairRM's architecture, which reads two answers at once. Every two are compared in both orders."""

    kind: Literal["pairwise"]


class Llm(Section):
    """A language model that reads a rubric and two answers, in both orders: behind an endpoint, or a policy of the run."""

    kind: Literal["llm"]
    model: str | None = None
    """What the endpoint calls it, such as `gpt-oss-120b`."""
    endpoint: Annotated[str | None, Beside()] = None
    """Name under `endpoints` in the cluster file, where its address and the name of its key's variable stand."""
    policy: Annotated[str | None, Beside()] = None
    """A policy of this run instead, such as `base`: its log-probability of "A" against "B" is the verdict."""
    rubric: str
    """Text file with what is asked of it; relative to the recipe, or one of the project's own. Its text is part of the stage key."""
    max_missing_share: Annotated[Share, Beside()] = 0.05
    """Above this share of comparisons without a verdict the stage stops and says why."""
    max_calls: Annotated[int, Between(1, 10**9, "each is paid for"), Beside()] = 100_000
    """Requests at most, those that failed among them; the stage then says what is missing, and goes on when this is raised."""
    max_tokens: Annotated[int, Between(1, 10**12, "each is paid for"), Beside()] = 100_000_000
    """Tokens at most, read and written, as the endpoint counts them."""
    max_new_tokens: Annotated[int, Between(1, 1_000_000, "no model writes more")] = 1024
    """Longest reply to one request."""

    allow_outside: Annotated[bool, Beside()] = False
    """Prompts and answers may leave this machine for the endpoint; the cluster file must allow it too."""

    @model_validator(mode="after")
    def _one_place(self) -> "Llm":
        if (self.endpoint is None) == (self.policy is None):
            given = "neither" if self.endpoint is None else "both"
            raise ValueError(f"an llm judge needs `endpoint` with `model`, or `policy`; found {given}")
        if (self.model is None) != (self.endpoint is None):
            raise FieldError("names the model behind `endpoint`: give both, or `policy` alone", "model")
        return self


class Endpoint(Section):
    """Where a judge answers, as a cluster file says it: an OpenAI-compatible server."""

    base_url: Annotated[str, Field(pattern=r"^https?://[^/@]+(/.*)?$")]
    """Address, such as `http://localhost:8000/v1`; without a key in it."""
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Name of the environment variable with the key. Its value is written nowhere."""
    allow_outside: bool = False
    """An address that is not this machine's may be sent prompts and answers; the judge in the recipe must allow it too."""
    parallel: Annotated[int, Between(1, 1024, "each is an open connection")] = 8
    """Requests under way at once."""
    timeout_seconds: Annotated[float, Between(0.1, 3600, "a reply takes seconds to minutes")] = 120.0
    """A request that takes longer has no reply."""


class RuleJudge(Section):
    """A rule that reads no answer: a floor that any other judge must beat."""

    kind: Literal["rule"]
    rule: Literal["longer", "shorter", "first", "random"]
    """`longer` and `shorter` by tokens; `first` by the answer's number; `random` by a hash of prompt and number."""


Judge = Annotated[Verifiable | RewardModel | Pairwise | Llm | RuleJudge, Field(discriminator="kind")]
"""Who scores or compares answers."""


class Rank(Section):
    """Which judges rank a round's answers, and how several of them make one score."""

    by: Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)]
    """Names under `judges`, the first to be asked first."""
    how: Literal["cascade", "mean_of_ranks"] = "cascade"
    """`cascade`: of each prompt the first judge that tells two answers apart. `mean_of_ranks`: the mean of the shares of other answers that
    an answer beats, among those that all judges scored."""

    @model_validator(mode="after")
    def _each_once(self) -> "Rank":
        if len(set(self.by)) < len(self.by):
            raise FieldError(f"a judge stands twice in {', '.join(self.by)}", "by")
        return self


class PairRules(Section):
    """How pairs are made of a prompt's scored answers."""

    chosen: Literal["best"] = "best"
    """The answer with the highest score; of several the first that ended and does not refuse."""
    rejected: Literal["worst", "low", "random"] = "worst"
    """`worst`: the lowest score. `low`: the one nearest to two standard deviations below the mean of all, which past five answers need not
    be the worst (arXiv 2502.16825). `random`: any that is below the chosen one, by a hash."""
    min_margin: Annotated[float, Between(0, 1e6, "chosen is never below rejected")] = 0.0
    """Least difference of the two scores, in the judge's unit. With 0 any difference will do; a tie never does."""
    truncated: Literal["never_chosen", "may_lose"] = "never_chosen"
    """An answer that was cut at `max_new_tokens` is never chosen. `may_lose`: it may be rejected; `never_chosen`: it is in no pair."""
    refusals: Literal["drop", "keep"] = "drop"
    """A prompt whose chosen answer refuses, by a rule on its first words: `drop` it, or `keep` it as any other."""
    max_length_ratio: Annotated[float, Between(1, 1e6, "the longer answer has at least the shorter one's tokens")] | None = 2.0
    """The longer answer of a pair has at most this many times the tokens of the shorter one: length grows from round to round without it
    (arXiv 2406.11817). None allows any."""
    per_prompt: Annotated[int, Between(1, 1000, "each is another rejected answer to the one chosen")] = 1
    """Pairs of a prompt at most: the chosen answer with so many different rejected ones."""
