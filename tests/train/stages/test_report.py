"""The report of runs built by hand: what it says of rounds that helped, failed, were rejected or skipped.

Covers: train/display/scores, train/evaluation/paired, train/reports/pages, train/reports/samples, train/reports/steps.
"""

import csv
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rounds.data_prep import records
from rounds.data_prep.records import Message, Pair
from rounds.train.config.cluster import Machine
from rounds.train.evaluation import paired
from rounds.train.generation import samples
from rounds.train.reports import figures
from rounds.train.reports import steps as run_steps
from tests import staged

VOID = {"meta", "br", "hr", "img", "input", "link", "use", "path", "rect"}
SOURCE_COUNTS = {"rows": 120, "records": 110, "dropped": {"empty_answer": 8}, "not_chosen": 2, "licence": "MIT",
                 "repository": "some/rows", "revision": "0123456789abcdef0123"}  # fmt: skip
TRAINING = {"learning_rate": 1e-5, "global_batch_size": 8, "lora": None}
ATTACK = '<script>alert(1)</script></style><img src=x onerror="alert(2)">{{ 7 * 191 }}'


class Run:
    """Stage folders written by hand, in the shape that stages leave behind."""

    def __init__(self, root: Path) -> None:
        self.root, self.inputs = root, {}
        self.recipe: dict[str, Any] = {"name": "tiny", "description": "A test.", "base": {"kind": "tiny"}, "sft": None,
                                       "rounds": [], "evaluate": None}  # fmt: skip

    def stage(self, name: str, inputs: dict[str, str] | None = None, counts: dict | None = None, **record: Any) -> Path:
        """Write a finished stage; `inputs` names other stages."""
        folder = self.root / f"{name.partition('.')[0]}-{len(self.inputs):016x}"
        folder.mkdir(parents=True)
        read = {key: {"stage": self.inputs[other].name} for key, other in (inputs or {}).items()}
        params = {"use": {"source": "rows", "split": "train"}} if name.startswith("source") else {}
        (folder / "stage.json").write_text(json.dumps({**staged.described(name, params, read), "git_commit": None}))
        done = {
            "status": "done",
            "counts": counts or {},
            "seconds": 1.5,
            "finished": 1.8e9 + len(self.inputs),
            **record,
        }
        (folder / "done.json").write_text(json.dumps(done))
        self.inputs[name] = folder
        return folder

    def data(self, name: str, kind: str) -> str:
        """Write a source, a training set and its tokens; returns the name of the last."""
        self.stage(f"source.{name}_rows", counts=SOURCE_COUNTS)
        dropped = {"exact_dedup": {"duplicate": 7}}
        counts = {"in": {f"{name}_rows": 110}, "out": {f"{name}_rows": 100}, "dropped": dropped,
                  "dropped_by_source": {f"{name}_rows": dropped}, "records": 100}  # fmt: skip
        self.stage(f"data.{name}", {f"source.{name}_rows": f"source.{name}_rows"}, counts)
        if kind == "pack":
            packed = {"conversations": 98, "tokens": 9000, "answer_tokens": 4000, "rows": 40, "fill": 0.9,
                      "dropped": {"longer_than_max_length": 2}, "length_histogram": {"<=128": 60, "<=64": 38}}  # fmt: skip
            self.stage("pack", {"data": f"data.{name}"}, packed)
            return "pack"
        pairs = {"pairs": 100, "cut": 3, "dropped": {}, "mean_prompt_tokens": 9.0, "mean_chosen_tokens": 8.0,
                 "mean_rejected_tokens": 7.0}  # fmt: skip
        self.stage(f"tokenize.{name}", {"data": f"data.{name}"}, pairs)
        return f"tokenize.{name}"

    def train(self, stage: str, start: str, tokens: str, logged: list[dict] | None = None) -> Path:
        """Write a training stage with its metrics."""
        key = "rows" if stage == "sft" else "pairs"
        folder = self.stage(stage, {"policy": start, key: tokens}, {"steps": 5, "train_loss": 0.5})
        keys = ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")
        lines = logged or [{"step": step, **dict.fromkeys(keys, 1.0 / step)} for step in range(1, 6)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    def evaluate(self, step: str, policy: str, values: dict[str, list[float]], answer: str = "yes") -> None:
        """Write an evaluation from the items' values; `task/loss` is better when lower."""
        folder = self.stage(f"evaluate.{step}", {"policy": policy}, {"scores": {}})
        write_evaluation(folder, values)
        if "source.prompts" not in self.inputs:
            prompts = self.stage("source.prompts", counts=SOURCE_COUNTS)
            asked = [Pair(f"p{n}", "made", (Message("user", f"question {n}"),), "a", "b") for n in range(9)]
            records.write_records(prompts / "records.parquet", asked, "pair")
        written = self.stage(f"answers.{step}", {"policy": policy, "prompts.answers": "source.prompts"})
        said = [answer.replace("\ud800", "") if n else "the same" for n in range(9)]
        rows = [samples.Sample(f"p{n}", 0, text, [1], 1, n != 2, -1.0, n) for n, text in enumerate(said)]
        samples.write(samples.file_of(written, "answers"), samples.table(rows))

    def gate(self, name: str, current: str, decision: str, says: str = "facts/acc 0.1 -> 0.2: holds", stops: bool = False) -> None:
        """Write a gate's decision."""
        inputs = {"current": current, "candidate": f"dpo.{name}", "candidate_scores": f"evaluate.{name}"}
        folder = self.stage(f"gate.{name}", inputs, {"decision": decision, "stops_rounds": stops})
        rules = [] if decision == "skipped" else [{"metric": "facts/acc", "holds": decision == "accepted", "says": says}]
        (folder / "decision.json").write_text(json.dumps({"decision": decision, "stops_rounds": stops, "rules": rules}))

    def page(self) -> str:
        """Run the stage and return the page."""
        out = self.root / "report"
        out.mkdir(exist_ok=True)
        self.counts = staged.run("report", {"recipe": self.recipe}, self.inputs, out, Machine())
        return (out / "report.html").read_text()


def write_evaluation(folder: Path, values: dict[str, list[float]]) -> None:
    def score(metric: str, those: list[float]) -> dict[str, Any]:
        return {
            "value": sum(those) / len(those),
            "stderr": 0.01,
            "n": len(those),
            "higher_is_better": "loss" not in metric,
        }

    rows = [(metric, f"item{n}", float(value), f"item{n}") for metric, those in values.items() for n, value in enumerate(those)]
    columns = zip(("metric", "item", "value", "question"), zip(*rows, strict=True), strict=True)
    pq.write_table(pa.table({name: list(column) for name, column in columns}), folder / "items.parquet")
    (folder / "scores.json").write_text(json.dumps({metric: score(metric, those) for metric, those in values.items()}))


def right(count: int, of: int = 60) -> list[float]:
    """Return `count` items answered right, first ones first, of so many."""
    return [1.0] * count + [0.0] * (of - count)


def rounds_run(root: Path) -> Run:
    """Build base, sft, and four rounds: one helps, one is worse and rejected, one changes nothing and ends the rounds."""
    run = Run(root)
    run.recipe["sft"] = TRAINING
    run.recipe["rounds"] = [{**TRAINING, "name": name, "beta": 0.1, "loss_type": ["sigmoid"]} for name in ("one", "two", "three", "four")]
    run.recipe["evaluate"] = {"tasks": [{"task": "free_answer", "name": "facts", "source": "held"}]}
    run.stage("source.held", counts=SOURCE_COUNTS)
    run.stage("base", counts={"parameters": 1000})
    run.evaluate("base", "base", {"facts/acc": right(10), "facts/acc/drug_class": right(5, 30), "facts/loss": right(50)}, "")
    run.train("sft", "base", run.data("sft", "pack"))
    run.evaluate("sft", "sft", {"facts/acc": right(30), "facts/acc/drug_class": right(15, 30), "facts/loss": right(20)})
    tokens = {name: run.data(name, "tokenize") for name in ("one", "two", "three", "four")}
    run.train("dpo.one", "sft", tokens["one"])
    run.evaluate("one", "dpo.one", {"facts/acc": right(45), "facts/acc/drug_class": right(25, 30), "facts/loss": right(20)}, "no")
    run.gate("one", "sft", "accepted")
    run.train("dpo.two", "gate.one", tokens["two"])
    run.evaluate("two", "dpo.two", {"facts/acc": right(20), "facts/acc/drug_class": right(9, 30), "facts/loss": right(20)}, "bad")
    run.gate("two", "gate.one", "rejected", "facts/acc 0.75 -> 0.33: may fall by 2 standard errors: does not hold")
    run.train("dpo.three", "gate.two", tokens["three"])
    run.evaluate(
        "three",
        "dpo.three",
        {"facts/acc": right(46), "facts/acc/drug_class": right(25, 30), "facts/loss": right(20)},
        "no",
    )
    run.gate("three", "gate.two", "rejected", stops=True)
    because = "the rounds ended at policy: rejected"
    run.stage("dpo.four", {"policy": "gate.three", "pairs": tokens["four"]}, status="skipped", because=because)
    run.stage("evaluate.four", {"policy": "dpo.four"}, status="skipped", because=because)
    run.gate("four", "gate.three", "skipped")
    run.stage("export", {"policy": "gate.four"}, {"folder": "model"})
    return run


class Page(HTMLParser):
    """Reads a page: checks that tags match, keeps its text, ids, attributes and what it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.parts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        self.text = re.sub(r"\s+", " ", "".join(self.parts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.parts.append(data)

    def part(self, start: str, end: str) -> str:
        """Return the text from the first `start` to the next `end`."""
        begin = self.text.index(start)
        return self.text[begin : self.text.index(end, begin + len(start))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """The run with every kind of round, and its page."""
    run = rounds_run(tmp_path_factory.mktemp("whole"))
    return run, run.page()


def test_each_round_gets_its_verdict(whole: tuple[Run, str]):
    run, _ = whole
    assert run.counts["rounds"] == {
        "one": "helped",
        "two": "made it worse",
        "three": "no measurable difference",
        "four": "skipped",
    }


def test_the_headline_names_what_did_not_help_as_plainly_as_what_did(whole: tuple[Run, str]):
    text = Page(whole[1]).text
    assert "1 helped (one); 1 made it worse (two); 1 made no measurable difference (three); 1 was skipped (four)." in text


def test_verdicts_say_within_noise_and_worse(whole: tuple[Run, str]):
    page = Page(whole[1])
    first = page.part("one sft → one", "two one → two")
    assert "Better: facts/acc" in first and "Within noise: facts/loss." in first and "✓ accepted" in first
    second = page.part("two one → two", "three one → three")
    assert "Worse: facts/acc" in second and "✗ rejected" in second and "goes on from one" in second
    third = page.part("three one → three", "four one → four")
    assert "It did not help: all that was measured is within noise (facts/acc, facts/loss)." in third


def test_lower_is_better_where_the_metric_says_so(whole: tuple[Run, str]):
    sft = Page(whole[1]).part("sft base → sft", "one sft → one")
    assert re.search(r"Better: facts/acc .*; facts/loss .*−0\.5", sft)


def test_a_round_is_compared_with_the_policy_it_started_from(whole: tuple[Run, str]):
    run, _ = whole
    stages = {name: run_steps.finished(name, folder) for name, folder in run.inputs.items()}
    steps = {step.name: step for step in run_steps.find_steps(run.recipe, stages)}
    starts = {name: step.start.name if step.start else None for name, step in steps.items()}
    assert starts == {"base": None, "sft": "base", "one": "sft", "two": "one", "three": "one", "four": "one"}
    assert [steps[name].status for name in ("sft", "one", "two", "four")] == [
        "trained",
        "accepted",
        "rejected",
        "skipped",
    ]


def test_a_skipped_round_says_why_and_the_exported_policy_is_named(whole: tuple[Run, str]):
    page = Page(whole[1])
    assert "Not run: the rounds ended at policy: rejected." in page.text
    assert "that of one" in page.part("Exported policy", "When")


def test_gates_data_and_groups_are_told(whole: tuple[Run, str]):
    page = Page(whole[1])
    gates = page.part("✓ facts/acc 0.1 -> 0.2: holds", "SFT loss")
    assert "✗ facts/acc 0.75 -> 0.33: may fall by 2 standard errors: does not hold" in gates and "and ended the rounds" in gates
    assert "facts/acc by group" in page.text and "drug_class" in page.text
    for told in (
        "exact_dedup: duplicate 7",
        "left out by the mix 3",
        "empty_answer 8",
        "over max_rows 2",
        "MIT",
        "some/rows 0123456789ab",
        "longer_than_max_length 2",
        "3 cut to 256 tokens",
    ):
        assert told in page.text, told


def test_samples_stand_side_by_side_and_equal_answers_share_a_box(whole: tuple[Run, str]):
    page = Page(whole[1])
    assert "one changed 8 (from sft)" in page.text
    sample = page.part("question 1", "question 3")
    for told in ("base", "nothing but blank space", "one, three (rejected) no", "two (rejected) bad"):
        assert told in sample, told
    assert "did not end within the limit" in page.text


def test_the_page_is_self_contained_and_well_formed(whole: tuple[Run, str]):
    html = whole[1]
    page = Page(html)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "img", "base", "form"}
    for name, value in page.attributes:
        assert not name.startswith("on"), (name, value)
        if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            assert (value or "").startswith("#"), (name, value)
    assert not re.search(r"@import|https?://|url\((?!#)", html)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for name, value in page.attributes if name == "href" and value} <= set(ids)


def test_the_page_is_accessible_and_warns(whole: tuple[Run, str]):
    html = whole[1]
    assert '<html lang="en">' in html and "width=device-width" in html and "prefers-color-scheme: dark" in html
    assert html.count("<svg") == len(re.findall(r'<svg [^>]*role="img" aria-label="[^"]{20,}', html)) > 8
    assert (
        "Not for clinical use: a research artefact. Scores are on held-out rows of the listed sources and say nothing about "
        "clinical safety." in Page(html).text
    )


def test_the_same_stages_give_the_same_page(whole: tuple[Run, str]):
    run, before = whole
    assert run.page() == before


def test_scores_are_written_as_csv(whole: tuple[Run, str]):
    run, _ = whole
    rows = list(csv.DictReader((run.root / "report" / "scores.csv").open()))
    assert rows[0] == {"stage": "base", "metric": "facts/acc", "value": str(10 / 60), "stderr": "0.01", "n": "60"}
    assert len(rows) == run.counts["scores"] == 5 * 3
    assert not [row for row in rows if row["stage"] == "four"]


def test_names_and_answers_cannot_inject(tmp_path: Path):
    run = Run(tmp_path)
    run.recipe |= {"description": ATTACK, "rounds": [{**TRAINING, "name": "one", "beta": 0.1, "loss_type": [ATTACK]}]}
    run.stage("base")
    values = {
        f"{ATTACK.replace('/', '')}/acc": right(30),
        f"facts/acc/{ATTACK}": right(9),
        "facts/acc": right(3),
    }
    run.evaluate("base", "base", values, ATTACK)
    run.train("dpo.one", "base", run.data("one", "tokenize"))
    run.evaluate("one", "dpo.one", values, f"{ATTACK}\x00\x1b\ud800 and $\\frac{{1}}{{2}}$")
    run.gate("one", "base", "rejected", ATTACK)
    page = Page(html := run.page())
    assert not page.tags & {"script", "img"} and not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(ATTACK) >= 5 and "1337" not in html
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", html)


def test_without_evaluation_it_says_that_nobody_can_say(tmp_path: Path):
    run = Run(tmp_path)
    lora = {**TRAINING, "lora": {"r": 8}}
    run.recipe |= {"sft": lora, "rounds": [{**lora, "name": "one", "beta": 0.1, "loss_type": ["sigmoid"]}]}
    run.stage("base")
    run.train("sft", "base", run.data("sft", "pack"))
    run.train("dpo.one", "sft", run.data("one", "tokenize"))
    page = Page(run.page())
    assert "Nothing was measured, so nobody can say." in page.text and "Scores" not in page.part("Did it help?", "Data")
    assert "No gate was set: its policy went on whatever it scored." in page.text
    assert "LoRA, r = 8" in page.text and run.counts["rounds"] == {"one": "not measured"}


def test_a_run_without_sft_and_rounds(tmp_path: Path):
    run = Run(tmp_path)
    run.recipe["base"] = {"kind": "hub", "id": "some/model", "revision": "f" * 40}
    run.stage("base", counts={"model_type": "llama", "vocabulary": 9})
    run.evaluate("base", "base", {"facts/acc": [1.0]})
    page = Page(run.page())
    assert "some/model at ffffffffffff" in page.text and "0 helped" not in page.text
    assert "facts/acc" in page.text


def test_rounds_may_share_one_training_set(tmp_path: Path):
    run = Run(tmp_path)
    run.recipe["rounds"] = [{**TRAINING, "name": name, "beta": 0.1, "loss_type": ["ipo"]} for name in ("one", "two")]
    run.stage("base")
    tokens = run.data("one", "tokenize")
    run.train("dpo.one", "base", tokens)
    run.train("dpo.two", "dpo.one", tokens, [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 0.4}])
    page = Page(run.page())
    assert "one, two100 pairs" in page.text


def test_few_items_and_lone_metrics_give_no_verdict():
    assert paired.compare("t/acc", {"a": 0.0}, {"a": 1.0}, True).verdict == "too few items"
    few = {str(n): float(n % 2) for n in range(paired.MIN_ITEMS)}
    assert paired.compare("t/acc", few, few, True).verdict == "within noise"
    assert paired.conclude([]) == "not measured"
    assert paired.conclude([paired.compare("t/acc", {"a": 0.0}, {"a": 1.0}, True)]) == "too few items to say"


def test_an_interval_that_contains_zero_is_within_noise():
    old = {str(n): 0.0 for n in range(100)}
    for better, verdict in ((3, "within noise"), (5, "better")):
        new = {item: float(int(item) < better) for item in old}
        found = paired.compare("t/acc", old, new, True)
        assert found.verdict == verdict and (found.low <= 0) == (verdict == "within noise")
        assert paired.compare("t/loss", old, new, False).verdict == {"better": "worse"}.get(verdict, verdict)
    assert paired.compare("answers/tokens", old, dict.fromkeys(old, 1.0), True).verdict == "rose"


def test_figures_follow_the_page_and_keep_names_as_text():
    drawn = figures.curves("loss", [figures.Curve("a$b$<c", [3.0, 2.0, 1.0]), figures.Curve("d", [1.0])])
    assert "a$b$&lt;c" in drawn and "currentColor" in drawn and "var(--c1)" in drawn and "#0102" not in drawn
    assert "<metadata" not in drawn and "<?xml" not in drawn
    assert figures.smooth([1.0, 2.0, 6.0], range(3)) == [1.5, 3.0, 4.0]


def test_a_curve_of_very_many_steps_is_drawn_in_a_time_that_grows_as_they_do():
    """At every step the average over a twelfth of the curve would be 4e9 values."""
    began = time.process_time()
    drawn = figures.curves("loss", [figures.Curve("sft", [1 / (1 + step) for step in range(300_000)])])
    assert time.process_time() - began < 20
    assert "sft 0.000801 to 3.4e-06" in drawn and len(drawn) < 50_000
