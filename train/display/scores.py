"""What the command line shows: the plan, live progress, the scores of each round, one stage in detail."""

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from rounds.data_prep import progress, sources
from rounds.train.engine import policy, store
from rounds.train.engine.graph import Stage
from rounds.train.forecast import row_counts
from rounds.train.plan.pipeline import Plan

_SECONDS_BETWEEN_LINES = 15.0
_SOURCES_LEGEND = (
    "* for evaluation only   ? id, commit, files or columns could not be checked when the source was written"
)


def plan_table(plan: Plan, root: Path) -> Table:
    """List stages with key, state and size, done or expected. Reads the store; computes nothing."""
    table = Table(
        title=f"{plan.recipe.name}: {len(plan.stages)} stages", title_justify="left", box=None, header_style="bold"
    )
    for heading in ("stage", "key", "state", "size"):
        table.add_column(heading, overflow="fold")
    before, sizes = store.last_run(root, plan.recipe.name), row_counts.sizes(plan, root)
    for stage in plan.stages:
        record = store.done(store.folder(root, stage))
        if record:
            state = Text("skipped" if record["status"] == "skipped" else "done", "green")
        else:
            state = Text("to do" + _why(stage, before.get(stage.name)), "yellow")
        table.add_row(stage.name, stage.key, state, _size(stage, plan, root, sizes.get(stage.name)))
    return table


def _why(stage: Stage, old: dict | None) -> str:
    """Say what differs from the stage of that name in the recipe's last run."""
    if old is None or old["folder"] == stage.folder_name:
        return ""
    changes = []
    if old["version"] != stage.version:
        changes.append(f"code version {old['version']} -> {stage.version}")
    changes += _differences("", old["params"], json.loads(json.dumps(dict(stage.params))))
    new_inputs = {name: source.key for name, source in stage.inputs.items()}
    changed = [name for name in new_inputs if old["inputs"].get(name) != new_inputs[name]]
    removed = [name for name in old["inputs"] if name not in new_inputs]
    if changed:
        changes.append(
            "input " + ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        )
    if removed:
        changes.append("without " + ", ".join(removed[:3]))
    return f" (changed: {'; '.join(changes[:3])})" if changes else ""


def _differences(path: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*new, *(key for key in old if key not in new)]
        found = [_differences(f"{path}.{key}" if path else key, old.get(key), new.get(key)) for key in keys]
        return [line for lines in found for line in lines]
    if old == new:
        return []
    texts = [text if len(text) <= 40 else f"{text[:37]}..." for text in (json.dumps(old), json.dumps(new))]
    return [f"{path} {texts[0]} -> {texts[1]}"]


def _size(stage: Stage, plan: Plan, root: Path, size: row_counts.Size | None) -> str:
    """Say how large a stage is, or will be as far as finished stages and published sizes tell."""
    counts = (store.done(store.folder(root, stage)) or {}).get("counts", {})
    if "parameters" in counts:
        return f"{counts['parameters']:,} parameters"
    if size is None:
        return ""
    if stage.function in ("sft", "dpo"):
        return _steps(stage, plan, size)
    about = "" if size.counted else "about " if stage.function == "pack" else "up to "
    if stage.function == "pack":
        return f"{about}{size.rows:,} packed rows, {size.tokens:,.0f} tokens"
    return f"{about}{size.rows:,} {'pairs' if stage.function in ('tokenize', 'reference') else 'rows'}"


def _steps(stage: Stage, plan: Plan, size: row_counts.Size) -> str:
    steps = row_counts.steps(size.rows, stage.params["training"])
    text = f"{steps:,} steps of {stage.params['training']['global_batch_size']}"
    if not size.counted:
        unsure = f"; {size.assumed_share:.0%} of its rows taken as {row_counts.MEAN_TOKENS} tokens"
        text += f" if no row is dropped{unsure if size.assumed_share else ''}"
    published = (plan.recipe.published_steps or {}).get(stage.name.removeprefix("dpo."))
    return f"{text} (published: {published:,})" if published else text


def sources_table() -> Table:
    """List the registered sources: splits with their rows, kind of record, licence, hub repository and commit."""
    table = Table(box=None, header_style="bold", caption=_SOURCES_LEGEND, caption_justify="left")
    for heading in ("source", "splits and rows", "kind", "licence", "repository", "commit"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "source")
    for name in sources.names():
        source = sources.load(name)
        splits = [_split(source, split) for split in source.splits]
        kinds = sorted({*source.splits.values(), *source.kind_by_format.values()})
        first = f"{source.repository or source.origin.partition(' at ')[0] or '-'}{'' if source.verified else ' ?'}"
        repository = "\n".join([first, *(f"{home.repository} ({split})" for split, home in source.homes.items())])
        commits = [source.revision or source.origin.partition(" at ")[2] or "-"]
        commit = "\n".join(str(each)[:10] for each in [*commits, *(home.revision for home in source.homes.values())])
        licence = source.licence or ("yours to state" if source.kind_by_format else "not stated")
        table.add_row(name, "\n".join(splits), "\n".join(kinds), licence, repository, commit)
    return table


def _split(source: sources.Source, split: str) -> str:
    rows = f" {source.sizes[split]:,}" if split in source.sizes else ""
    return f"{split}{'*' if split in source.evaluation_only else ''}{rows}"


class Live:
    """Progress of a run: a bar for the stages, one for the stage at work. Plain lines where there is no terminal."""

    def __init__(self, console: Console, plan: Plan, root: Path) -> None:
        self.console, self.plan = console, plan
        self.total = len(plan.stages)
        self.done = sum(store.done(store.folder(root, stage)) is not None for stage in plan.stages)
        self.began, self.last_line = 0.0, 0.0
        self.progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[numbers]}"), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self.stages: TaskID = self.progress.add_task("stages", total=self.total, completed=self.done, numbers="")
        self.current: TaskID | None = None

    def __enter__(self) -> "Live":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, event: Any) -> None:
        """Show an event of the launcher."""
        stage, folder = event.stage, event.folder
        if event.kind == "starts":
            self.began = time.monotonic()
            self.current = self.progress.add_task(stage.name, total=None, numbers="")
            self._line(f"[{self.done + 1}/{self.total}] {stage.name} starts")
        elif event.kind == "waits":
            self.console.print(f"{stage.name}: waiting for {store.holder(folder)}", highlight=False)
        elif event.kind == "moves":
            self._moves(stage, folder)
        elif event.kind == "done":
            self._ends(stage, folder)

    def _moves(self, stage: Stage, folder: Path) -> None:
        now = store.read_json(folder / "progress.json")
        if now is None or self.current is None:
            return
        shown = numbers(now)
        self.progress.update(self.current, completed=now["step"], total=now["total"], numbers=shown)
        if not self.console.is_terminal and time.monotonic() - self.last_line > _SECONDS_BETWEEN_LINES:
            self._line(f"    {stage.name}: {now['step']} of {now['total'] or '?'} {now['unit']} {shown}")

    def _ends(self, stage: Stage, folder: Path) -> None:
        record = store.done(folder) or {}
        self.done += 1
        if self.current is not None:
            self.progress.remove_task(self.current)
            self.current = None
        self.progress.update(self.stages, completed=self.done)
        detail = f"skipped: {record['because']}" if record.get("status") == "skipped" else headline(stage, record)
        self.console.print(
            f"{stage.name:<24} {record.get('seconds', 0):7.1f} s  {detail}", highlight=False, markup=False
        )

    def _line(self, text: str) -> None:
        if not self.console.is_terminal:
            self.last_line = time.monotonic()
            self.console.print(text, highlight=False, markup=False)


def numbers(state: dict) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in progress.numbers(state).items())


def headline(stage: Stage, record: dict) -> str:
    counts = record.get("counts", {})
    if stage.function == "gate":
        return counts["decision"]
    if stage.function == "evaluate":
        shown = [name for name in counts["scores"] if name.count("/") == 1][:4]
        return ", ".join(f"{name} {counts['scores'][name][0]:.3f}" for name in shown)
    if stage.function in ("sft", "dpo"):
        return f"{counts['steps']} steps, mean loss {counts['train_loss']:.4f}"
    names = ("records", "conversations", "rows", "pairs", "tokens", "parameters")
    dropped = counts.get("dropped", {})
    lost = (
        sum(sum(v.values()) if isinstance(v, dict) else v for v in dropped.values()) if isinstance(dropped, dict) else 0
    )
    parts = [f"{counts[name]:,} {name}" for name in names if isinstance(counts.get(name), int)][:3]
    return ", ".join([*parts, f"{lost:,} dropped"] if lost else parts)


def summary(console: Console, plan: Plan, root: Path, ran: int, seconds: float) -> None:
    """Print the scores per round, the gates' decisions, and where the report and the model are."""
    evaluations = {stage.name.removeprefix("evaluate."): store.read_json(store.folder(root, stage) / "scores.json") or {}
                   for stage in plan.stages if stage.function == "evaluate"}  # fmt: skip
    if evaluations:
        console.print(_scores_table(plan.recipe.name, evaluations))
    for stage in plan.stages:
        if stage.function == "gate":
            decision = store.read_json(store.folder(root, stage) / "decision.json") or {}
            console.print(f"{stage.name}: {decision.get('decision')}", highlight=False)
            for rule in decision.get("rules", []):
                console.print(f"    {rule['says']}", highlight=False, markup=False, soft_wrap=True)
    for stage in plan.stages:
        record = store.done(store.folder(root, stage)) or {}
        if record.get("counts", {}).get("stops_rounds") and record["counts"]["decision"] == "rejected":
            console.print(f"stopped at {stage.name}: the rounds after it were skipped", style="yellow", highlight=False)
    done = "nothing was left to do" if not ran else f"{ran} stages run in {seconds:.1f} s"
    console.print(f"{done}; {len(plan.stages)} in all", highlight=False)
    exported = store.folder(root, plan.stage("export"))
    made_by = store.spec(policy.chain(store.inputs(exported)["policy"])[-1])["name"]
    print(f"model:  {exported / 'model'} (the policy after {made_by})")
    print(f"report: {store.folder(root, plan.stage('report')) / 'report.html'}")


def _scores_table(name: str, evaluations: dict[str, dict]) -> Table:
    table = Table(
        title=f"{name}: scores on held-out rows, ±standard error", title_justify="left", box=None, header_style="bold"
    )
    table.add_column("metric", no_wrap=True)
    for column in evaluations:
        table.add_column(column, justify="right", no_wrap=True)
    metrics = dict.fromkeys(metric for scores in evaluations.values() for metric in scores)
    for metric in metrics:
        if metric.count("/") == 1:  # not the breakdown by group; the report has it
            table.add_row(metric, *(_score(scores.get(metric)) for scores in evaluations.values()))
    return table


def _score(score: dict | None) -> str:
    if score is None:
        return "-"
    digits = 1 if abs(score["value"]) >= 10 else 3
    return f"{score['value']:.{digits}f}" + ("" if score["stderr"] is None else f" ±{score['stderr']:.{digits}f}")


def stage(console: Console, folder: Path, whole_log: bool) -> None:
    """Print everything that a stage's folder tells."""
    spec, record = store.spec(folder), store.done(folder)
    state = record["status"] if record else "running" if store.is_held(folder) else "not finished"
    console.print(Text.assemble((spec["name"], "bold"), f" ({spec['function']}, version {spec['version']}): {state}"))
    console.print(f"folder  {folder}", highlight=False, soft_wrap=True)
    console.print(f"commit  {spec['git_commit']}", highlight=False)
    console.print("inputs", style="bold")
    for name, entry in spec["inputs"].items():
        console.print(
            f"  {name}: {entry.get('stage') or entry.get('path')}", highlight=False, markup=False, soft_wrap=True
        )
    console.print("params", style="bold")
    console.print_json(data=spec["params"])
    if record:
        console.print("counts", style="bold")
        console.print_json(data=record.get("counts", {"because": record.get("because")}))
        console.print(f"files ({record['seconds']:.1f} s of work)", style="bold")
        for name in record["digests"]:
            console.print(f"  {name}  {(folder / name).stat().st_size:,} bytes", highlight=False, markup=False)
    scores = store.read_json(folder / "scores.json")
    if scores:
        console.print(_scores_table(spec["name"], {"score": scores}))
    failure = store.read_json(folder / "failed.json")
    if failure:
        console.print(f"failed: {failure['message']}", style="red", markup=False)
    log = folder / "log.txt"
    if log.is_file():
        lines = log.read_text(errors="replace").splitlines()
        console.print(
            f"log (last {min(20, len(lines))} of {len(lines)} lines)" if not whole_log else "log", style="bold"
        )
        for line in lines if whole_log else lines[-20:]:
            shown = line.rpartition("\r")[2]  # what a terminal would leave of a progress bar
            console.print(f"  {shown}", highlight=False, markup=False, soft_wrap=True)
