"""The kinds of stages, told once: what runs, at which version, on which row of the cluster file, and what is true of it.

Imports nothing. Everything else asks `stage.kind.<fact>` and never compares names, so a new kind is its file, its entry here, its
params (`params.py`), its section of the recipe and its place in `plan/pipeline.py`.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

Row = Literal["cpu", "train", "infer", "generate"]


@dataclass(frozen=True)
class Kind:
    """One kind of stage."""

    name: str
    """Begins the names of its folders in the store."""
    code: str
    """`module:function` of what runs; imported when a stage runs, and never by planning."""
    params: str
    """`module:class` of what it is asked to do."""
    version: int
    """Raised when the code's answer changes: with it every key."""
    row: Row = "cpu"
    """The row of the cluster file that it runs by."""
    column: int | None = None
    """Its place in the report's drawing of the run, from left to right; None is not drawn."""
    arrows: tuple[str, ...] = ()
    """Beginnings of the names of those inputs that are drawn; all of them would hide the flow."""
    page: str = ""
    """The page that it makes for a person."""

    reads_source: bool = False
    """Takes one set of rows in."""
    mixes: bool = False
    """Makes one training set of several sources."""
    asks: bool = False
    """What it makes are prompts for a policy to answer; nothing is trained on them as they are."""
    makes_tokens: bool = False
    """Makes rows of tokens of a training set, its input `data`."""
    packs: bool = False
    """Several conversations share one of its rows."""
    of_pairs: bool = False
    """Its rows are pairs."""
    holds_text: bool = False
    """Its result holds what rows say, as text or as tokens."""
    about_rows: bool = False
    """The manifest tells it: what the rows are, and what became of them."""
    trial: str = ""
    """`module:function` that tries out what later stages will do with its policy."""
    starts: bool = False
    """Makes the policy that all others start from."""
    reads_weights: bool = False
    """Opens the weights of the base model, or of what was trained from it."""
    loads_policy: bool = False
    """Has a policy in memory, on the devices of its row."""
    trains: bool = False
    """Makes new weights, over steps, and writes checkpoints; asked to stop it writes one and ends."""
    on_pairs: bool = False
    """Trains on pairs: one of its rows is two conversations."""
    is_round: bool = False
    """Trains on pairs, against a reference."""
    is_judge: bool = False
    """What it makes says which answer is better; it is no policy, and no policy is trained from it."""
    scores_pairs: bool = False
    """Computes the reference's log-probabilities."""
    spread: bool = False
    """Runs as all processes of its row, which are one group: none goes on without the others."""
    apart: bool = False
    """Runs as all processes of its row, which share its work by files alone: one that is lost costs what it was at. Asked to stop, they
    end after that. A kind that is neither is one process."""
    writes: bool = False
    """Answers prompts in a policy's own words."""
    ranks: bool = False
    """Asks a judge which answers are better."""
    loads_judge: bool = False
    """Has a judge's weights in memory, on the devices of its row."""
    pairs_up: bool = False
    """Makes pairs of ranked answers."""
    vets: bool = False
    """Says how often a judge is right, where the better answer is known."""
    measures: bool = False
    """Scores a policy."""
    compares_answers: bool = False
    """Sets one policy's answers against another's."""
    decides: bool = False
    """Lets one of two policies go on."""
    exports: bool = False
    """Writes the finished model folder."""
    compares: bool = False
    """Compares finished runs: of what it needs, it takes what is there."""
    checks: bool = False
    """Looks at the nodes of a row; never taken as done."""
    tracked: bool = False
    """Has numbers to plot: a job of its own in wandb."""
    light: bool = False
    """Needs no torch."""
    after_stop: bool = False
    """Runs even when a gate has ended the rounds before it."""


def _kind(name: str, version: int, row: Row = "cpu", **facts: Any) -> Kind:
    """A kind whose code is `train/stages/NAME.py` and whose params are `NameParams` of `params.py`."""
    record = "".join(word.title() for word in name.split("_"))
    return Kind(name, f"rounds.train.stages.{name}:run", f"rounds.train.engine.params:{record}Params", version, row, **facts)


# fmt: off
SOURCE = Kind("source", "rounds.data_prep.build:source", "rounds.data_prep.schema:SourceParams", 7,
              column=0, reads_source=True, holds_text=True, about_rows=True, light=True)
DATA = Kind("data", "rounds.data_prep.build:data", "rounds.data_prep.schema:DataParams", 9,
            column=1, arrows=("source.",), mixes=True, holds_text=True, about_rows=True, light=True)
PROMPTS = _kind("prompts", 1, mixes=True, asks=True, holds_text=True, about_rows=True, light=True)
BASE = _kind("base", 1, column=4, starts=True, reads_weights=True, trial="rounds.train.training.trial:run")
PACK = _kind("pack", 3, column=2, arrows=("data",), makes_tokens=True, packs=True, holds_text=True, about_rows=True)
TOKENIZE = _kind("tokenize", 2, column=2, arrows=("data",), makes_tokens=True, of_pairs=True, holds_text=True, about_rows=True)
SFT = _kind("sft", 2, "train", column=4, arrows=("policy", "rows"),
            reads_weights=True, loads_policy=True, trains=True, spread=True, tracked=True)
REFERENCE = _kind("reference", 3, "train", column=3, arrows=("pairs", "policy"),
                  of_pairs=True, reads_weights=True, loads_policy=True, scores_pairs=True, spread=True)
DPO = _kind("dpo", 2, "train", column=4, arrows=("policy", "reference"),
            reads_weights=True, loads_policy=True, trains=True, on_pairs=True, is_round=True, spread=True, tracked=True)
REWARD = _kind("reward", 1, "train", column=4, arrows=("policy", "pairs"),
               reads_weights=True, loads_policy=True, trains=True, on_pairs=True, is_judge=True, spread=True, tracked=True)
EVALUATE = _kind("evaluate", 3, "infer", column=5, arrows=("policy",),
                 reads_weights=True, loads_policy=True, measures=True, holds_text=True, tracked=True)
EVALUATE_API = replace(EVALUATE, name="evaluate_api", row="cpu", arrows=(), reads_weights=False, loads_policy=False)  # what it wrote alone
ANSWERS = _kind("answers", 1, "generate", reads_weights=True, loads_policy=True, apart=True, writes=True, holds_text=True)
API_ANSWERS = _kind("api_answers", 1, writes=True, holds_text=True)
SAMPLE = replace(ANSWERS, name="sample")  # another file of the store, and the same code: what is answered is to be trained on
RANK = _kind("rank", 1, ranks=True, holds_text=True)
RANK_MODEL = replace(RANK, name="rank_model", row="generate", loads_judge=True)  # the same code, where a model is what judges
PAIRS = _kind("pairs", 1, pairs_up=True, holds_text=True, about_rows=True)
JUDGE = _kind("judge", 1, compares_answers=True, holds_text=True, tracked=True)
JUDGE_MODEL = replace(JUDGE, name="judge_model", row="generate", loads_judge=True)  # the same code, where a model is what judges
CARD = _kind("card", 1, "infer", loads_judge=True, vets=True)
GATE = _kind("gate", 2, column=6, arrows=("candidate_scores",), decides=True, tracked=True, light=True, after_stop=True)
MANIFEST = _kind("manifest", 3, after_stop=True)
EXPORT = _kind("export", 5, column=7, arrows=("policy",), reads_weights=True, exports=True, after_stop=True)
REPORT = _kind("report", 1, page="report.html", holds_text=True, after_stop=True)
ABLATION_REPORT = _kind("ablation_report", 3, page="ablation.html", compares=True, after_stop=True)
COMPARISON = _kind("comparison", 1, page="comparison.html")
PREFLIGHT = _kind("preflight", 1, spread=True, checks=True)
# fmt: on

KINDS = {
    kind.name: kind
    for kind in (SOURCE, DATA, PROMPTS, BASE, PACK, TOKENIZE, SFT, REFERENCE, DPO, REWARD, ANSWERS, API_ANSWERS, SAMPLE, RANK, RANK_MODEL,
                 PAIRS, CARD, EVALUATE, EVALUATE_API, JUDGE, JUDGE_MODEL, GATE, MANIFEST, EXPORT, REPORT, ABLATION_REPORT, COMPARISON,
                 PREFLIGHT)
}  # fmt: skip
