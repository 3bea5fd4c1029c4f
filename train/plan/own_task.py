"""A task file of recipes/eval_tasks, held to what such a file may say: keys of lm-eval's that are listed here, and plain words as names.

lm-eval reads its own task files as programs: `!function` and `class` name Python code, `hf_evaluate` fetches a script, `include` and
`dataset_path` lead elsewhere. A file that comes with a recipe is somebody else's text, so whatever is not known to be harmless is refused,
with file and line. Its templates are rendered in `rounds.train.tokens.sandbox`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from rounds.data_prep.errors import UserError, nearest
from rounds.train.config import own_file, yaml_layers

_OUTPUTS = ("multiple_choice", "generate_until", "loglikelihood")
_METRICS = ("acc", "acc_norm", "acc_bytes", "exact_match", "f1", "mcc", "brier_score", "perplexity", "likelihood")
"""Those of lm-eval's that need no package and no script of the hub."""
_AGGREGATIONS = ("mean", "median", "nanmean", "perplexity", "f1", "matthews_corrcoef", "brier_score")
_FILTERS = ("take_first", "take_first_k", "majority_vote", "lowercase", "uppercase", "map", "regex", "regex_pos", "remove_whitespace",
            "multi_choice_regex")  # fmt: skip
_KEYS: dict[str, tuple[str, ...]] = {
    "": ("task", "task_alias", "output_type", "description", "doc_to_text", "doc_to_target", "doc_to_choice", "target_delimiter",
         "fewshot_delimiter", "generation_kwargs", "metric_list", "filter_list", "repeats", "metadata"),
    "metric_list": ("metric", "aggregation", "higher_is_better", "ignore_case", "ignore_punctuation", "ignore_numbers",
                    "regexes_to_ignore"),
    "filter_list": ("name", "filter"),
    "filter_list.filter": ("function", "regex_pattern", "group_select", "fallback", "k", "mapping_dict", "default_value", "ignore_case",
                           "ignore_punctuation", "regexes_to_ignore"),
    "generation_kwargs": ("until", "do_sample", "temperature", "top_p", "top_k", "max_gen_toks"),
    "metadata": ("version",),
}  # fmt: skip
"""What may stand where; a list's elements have the keys of the list."""
_CHOICES = {("output_type",): _OUTPUTS, ("metric_list", "metric"): _METRICS, ("metric_list", "aggregation"): _AGGREGATIONS,
            ("filter_list", "filter", "function"): _FILTERS}  # fmt: skip
_TEXTS = ("task", "task_alias", "description", "doc_to_text", "target_delimiter", "fewshot_delimiter", "name")
_WORD = re.compile(r"[\w.-]{1,60}", re.ASCII)
_REQUIRED = ("output_type", "doc_to_text", "doc_to_target", "metric_list")


def read(file: Path) -> tuple[str, dict[str, Any]]:
    """Return a task file's text and what it says. Raises `UserError` with file and line for what it may not say."""
    text = own_file.text(file)
    try:
        said, root = yaml_layers.parse(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: not a task file: {yaml_layers.told(error)}. A task file is plain YAML; `!function`, which names Python code, is not "
            "taken"
        ) from None
    if not isinstance(said, dict):
        raise UserError(f"{file}: not a task file: expected fields such as output_type, doc_to_text, doc_to_target and metric_list")
    for loc, problem in _problems(said):
        line = yaml_layers.line_of_node(root, loc)
        raise UserError(f"{file}{line}: {'.'.join(map(str, loc)) or 'the whole'}: {problem}")
    return text, said


def metrics(said: dict[str, Any]) -> list[str]:
    """List the metrics that a task computes, one per filter where it has several."""
    names = [entry["metric"] for entry in said["metric_list"]]
    filters = [entry["name"] for entry in said.get("filter_list", [])]
    return names if len(filters) < 2 else [f"{name},{each}" for name in names for each in filters]


def _problems(said: dict[str, Any]) -> Iterator[tuple[tuple, str]]:
    """Yield where a file says what it may not, and what is wrong there."""
    for name in _REQUIRED:
        if said.get(name) in (None, "", []):
            yield (), f"required field {name} is missing"
    yield from _section(said, "", ())
    for name in ("metric_list", "filter_list"):
        for place, entry in _elements(said.get(name)):
            if not isinstance(entry, dict):
                yield (name, place), f"expected fields such as {', '.join(_KEYS[name][:2])}; found {entry!r:.60}"
                continue
            yield from _section(entry, name, (name, place))
            needed = _KEYS[name][0]
            if needed not in entry:
                yield (name, place), f"required field {needed} is missing"
            for at, each in _elements(entry.get("filter")):
                if not isinstance(each, dict):
                    yield (name, place, "filter", at), f"expected `function: NAME`; found {each!r:.60}"
                    continue
                yield from _section(each, "filter_list.filter", (name, place, "filter", at))
    for name in ("generation_kwargs", "metadata"):
        if isinstance(said.get(name), dict):
            yield from _section(said[name], name, (name,))
        elif said.get(name) is not None:
            yield (name,), f"expected fields such as {_KEYS[name][0]}; found {said[name]!r:.60}"
    if not isinstance(said.get("doc_to_choice"), str | list | None) or not _all_text(said.get("doc_to_choice")):
        yield ("doc_to_choice",), "expected a template or a list of texts"
    if not isinstance(said.get("doc_to_target"), str | int) or isinstance(said.get("doc_to_target"), bool):
        yield ("doc_to_target",), f"expected a template; found {said.get('doc_to_target')!r:.60}"


def _section(fields: dict[str, Any], section: str, loc: tuple) -> Iterator[tuple[tuple, str]]:
    plain = tuple(part for part in loc if isinstance(part, str))
    for name, value in fields.items():
        where = (*loc, name)
        if name not in _KEYS[section]:
            yield where, f"a task file here may not say this. {nearest(str(name), _KEYS[section])}"
            continue
        wanted = _CHOICES.get((*plain, name))
        if wanted and value not in wanted:
            yield where, f"found {value!r:.60}; {nearest(str(value), wanted)}"
        if name in _TEXTS and not isinstance(value, str):
            yield where, f"expected text; found {value!r:.60}"
        if name in ("task", "name") and isinstance(value, str) and not _WORD.fullmatch(value):
            yield where, f"expected a plain word of letters, digits, `_`, `-` and `.`; found {value!r:.60}"
        if name in ("metric_list", "filter_list", "filter") and not isinstance(value, list):
            yield where, f"expected a list; found {value!r:.60}"


def _elements(value: Any) -> list[tuple[int, Any]]:
    return list(enumerate(value)) if isinstance(value, list) else []


def _all_text(value: Any) -> bool:
    return not isinstance(value, list) or all(isinstance(each, str) for each in value)
