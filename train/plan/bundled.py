"""Tasks that lm-eval ships, read from its files: whether there is one of a name, and whether this environment can run it.

lm-eval finds out while it runs, after hours of training: a package is missing, a metric is a script on the hub, a data set is a script that
`datasets` 4 and newer refuse. In: a name. Out: what is in the way, in words. Neither lm-eval nor a package is imported: a task's YAML, what
it includes, the tasks of a group, and the Python files that it names are read.
"""

import ast
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rounds.data_prep.errors import UserError

_SCRIPTS = re.compile(r"bigbio/.+")
"""Data sets of lm-eval's tasks that are Python scripts on the hub."""
_OURS = {"bigbio/pubmed_qa": "pubmedqa"}
"""Sources of this project that have the rows of such a set."""
_METRICS = {"acc", "acc_all", "acc_bytes", "acc_mutual_info", "acc_norm", "bits_per_byte", "bleu", "brier_score", "bypass",
            "byte_perplexity", "chrf", "chrf++", "exact_match", "f1", "likelihood", "mcc", "perplexity", "ter",
            "word_perplexity"}  # fmt: skip
"""Those that lm-eval has itself; it looks for any other on the hub."""
_PYPI = {"sklearn": "scikit-learn", "rouge_score": "rouge-score", "bert_score": "bert-score", "math_verify": "math-verify",
         "antlr4": "antlr4-python3-runtime", "cv2": "opencv-python"}  # fmt: skip
"""Packages that are not called what is imported."""
_MOST_FILES = 400
"""Of a group: the largest has a few hundred tasks, much alike."""


@dataclass
class _Needs:
    """What the tasks of a name ask for, and who."""

    packages: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    """Other obstacles -> the first task that has it."""


@cache
def is_task(name: str) -> bool:
    """Tell whether lm-eval ships a task, group or tag of that name."""
    return bool(_defining(name))


@cache
def obstacle(name: str) -> str | None:
    """Say why a task, or one of a group, cannot run in this environment, or return None where nothing is known to be in the way."""
    needs, seen = _Needs(), set()
    for file in _defining(name):
        _read_task(file, name, needs, seen)
    told = [f"{what} ({task})" if task != name else what for what, task in needs.others.items()]
    if needs.packages:
        packages = sorted(needs.packages)
        told.append(f"it needs packages that are not installed here: pip install {' '.join(packages)}")
    return "; ".join(told) or None


@cache
def _files() -> dict[str, list[str]]:
    """Return lm-eval's YAML files by their names."""
    found: dict[str, list[str]] = {}
    for folder, _, files in os.walk(_top()):
        for file in files:
            if file.endswith(".yaml"):
                found.setdefault(file.removesuffix(".yaml"), []).append(f"{folder}{os.sep}{file}")
    return found


@cache
def _top() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise UserError("lm-eval is not installed, so its tasks cannot be checked; install the project's dependencies")
    return Path(spec.origin).parent / "tasks"


@cache
def _defining(name: str) -> tuple[str, ...]:
    """Find the files that a task or group is in, or those under a tag. Most are called as what they hold: of 14,000 few are read."""
    pattern = _pattern(name)
    named = tuple(file for file in _files().get(name, []) if pattern.search(Path(file).read_bytes()))
    if named:
        return named
    every = [file for files in _files().values() for file in files]
    # Folders are named after what is in them: the likeliest files first.
    for file in sorted(every, key=lambda path: name.partition("_")[0] not in path):
        if found := pattern.search(Path(file).read_bytes()):
            if found.group(1) in (b"task", b"group"):
                return (file,)
            beside = sorted(str(each) for each in Path(file).parent.rglob("*.yaml"))
            return tuple(each for each in beside[:_MOST_FILES] if pattern.search(Path(each).read_bytes()))
    return tuple(_files().get(name, []))  # named by its file alone


def _pattern(name: str) -> re.Pattern[bytes]:
    """Match the line that gives a task, group or tag its name; a file may list several tags."""
    word = rf"""["']?{re.escape(name)}["']?\s*$"""
    listed = rf"""^["']?tag["']?\s*:\s*(?:\n\s*-[^\n]+)*?\n\s*-\s*{word}"""
    return re.compile(rf"""^["']?(task|group|tag)["']?\s*:\s*{word}|{listed}""".encode(), re.MULTILINE)


def _read_task(file: str, name: str, needs: _Needs, seen: set[str]) -> None:
    """Collect what a file asks for; of a group what its tasks do, as far as they are found beside it or by their names."""
    if file in seen or len(seen) > _MOST_FILES:
        return
    seen.add(file)
    said = _said(Path(file))
    if said is None:
        return
    members = said.get("task")
    for member in members if isinstance(members, list) else ():
        child: Any = member.get("task", member.get("group")) if isinstance(member, dict) else member
        for each in _beside(Path(file).parent, child) if isinstance(child, str) else ():
            _read_task(each, child, needs, seen)
    if not isinstance(members, list):
        _note(said, Path(file).parent, str(members or name), needs)


def _beside(folder: Path, name: str) -> tuple[str, ...]:
    """Find the files of a group's member: by its name anywhere, or by what files in the group's folder say."""
    if found := _files().get(name):
        return tuple(found[:1])
    pattern = _pattern(name)
    return tuple(each for each, content in _contents(folder) if pattern.search(content))


@cache
def _contents(folder: Path) -> list[tuple[str, bytes]]:
    return [(str(each), each.read_bytes()) for each in sorted(folder.rglob("*.yaml"))[:_MOST_FILES]]


_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Safe):
    """Reads `!function utils.text` as that text."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix} {getattr(node, 'value', '')}")


@cache
def _said(file: Path) -> dict[str, Any] | None:
    """Read a task's file over what it includes; None for what is none."""
    try:
        said = yaml.load(file.read_bytes(), Loader=_Loader)
    except (OSError, yaml.YAMLError):
        return None
    if not isinstance(said, dict):
        return None
    included = said.get("include")
    for each in included if isinstance(included, list) else [included] if included else []:
        under = _said(file.parent / str(each))
        said = {**(under or {}), **said}
    return said


def _note(said: dict[str, Any], folder: Path, task: str, needs: _Needs) -> None:
    data = str(said.get("dataset_path") or "")
    if _SCRIPTS.fullmatch(data):
        ours = f"; the source `{_OURS[data]}` has its rows: ask it with `choice_likelihood`" if data in _OURS else ""
        needs.others.setdefault(f"its data set {data} is a script, which `datasets` 4 and newer refuse{ours}", task)
    if said.get("unsafe_code"):
        needs.others.setdefault("it runs code that the model wrote", task)
    if said.get("doc_to_image") or said.get("doc_to_audio"):
        needs.others.setdefault("it asks about images or sound, and policies here read text", task)
    for entry in said.get("metric_list") or ():
        metric = entry.get("metric") if isinstance(entry, dict) else None
        foreign = isinstance(metric, str) and not metric.startswith("!") and metric not in _METRICS
        if isinstance(entry, dict) and "process_results" not in said and (entry.get("hf_evaluate") or foreign):
            needs.others.setdefault(f"its metric {metric} is a script on the hub, which is not run here", task)
    for module, function in _functions(said):
        _note_module(folder / f"{module.replace('.', os.sep)}.py", function, task, needs, set())


def _functions(said: Any) -> Iterator[tuple[str, str]]:
    """Yield the module and name of every Python function that a task names."""
    if isinstance(said, dict):
        for value in said.values():
            yield from _functions(value)
    elif isinstance(said, list):
        for value in said:
            yield from _functions(value)
    elif isinstance(said, str) and said.startswith("!function "):
        module, _, function = said.removeprefix("!function ").strip().rpartition(".")
        yield module, function


def _note_module(file: Path, function: str, task: str, needs: _Needs, seen: set[Path]) -> None:
    """Collect what a Python file imports, and the scripts that it loads, when it is imported or that function is called."""
    if file in seen or not file.is_file():
        return
    seen.add(file)
    tree = _tree(file)
    for node in _run_nodes(tree, _reached(tree, function)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("evaluate.load", "hf_evaluate.load", "load_metric"):
            needs.others.setdefault("it loads metrics that are scripts on the hub, which are not run here", task)
        elif isinstance(node, ast.Import):
            for each in node.names:
                _note_import(each.name, file, task, needs, seen)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            _note_import(node.module, file, task, needs, seen)
            for each in node.names:
                _follow(f"{node.module}.{each.name}", task, needs, seen)


def _note_import(module: str, file: Path, task: str, needs: _Needs, seen: set[Path]) -> None:
    first = module.partition(".")[0]
    if first == "lm_eval":
        _follow(module, task, needs, seen)
    elif first not in sys.stdlib_module_names and not (file.parent / f"{first}.py").is_file() and not _installed(first):
        needs.packages.setdefault(_PYPI.get(first, first), task)


def _follow(module: str, task: str, needs: _Needs, seen: set[Path]) -> None:
    if module.startswith("lm_eval.tasks."):
        _note_module(_top().joinpath(*module.split(".")[2:]).with_suffix(".py"), "", task, needs, seen)


@cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@cache
def _tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def _reached(tree: ast.Module, function: str) -> frozenset[str]:
    """Name the functions and classes of a module that run when one of them does."""
    known = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    reached: set[str] = set()
    todo = [function]
    while todo:
        name = todo.pop()
        if name in known and name not in reached:
            reached.add(name)
            todo += [node.id for node in ast.walk(known[name]) if isinstance(node, ast.Name)]
    return frozenset(reached)


def _run_nodes(tree: ast.AST, reached: frozenset[str]) -> Iterator[ast.AST]:
    """Yield the nodes that run when a module is imported and when some of its functions do. An import that may fail, since the error is
    caught and not raised again, is passed over."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and child.name in reached:
            yield from ast.walk(child)
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.Try) and not any(isinstance(each, ast.Raise) for handler in child.handlers for each in ast.walk(handler)):
            rest = [each for part in (*child.handlers, *child.finalbody) for each in ast.walk(part)]
            yield from (each for each in rest if not isinstance(each, ast.Import | ast.ImportFrom))
            continue
        yield child
        yield from _run_nodes(child, reached)
