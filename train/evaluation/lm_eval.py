"""lm-eval's tasks, asked of a model in memory: what every item gave, under the names that gates and reports use.

In: tasks as the recipe asks for them, and the folders of questions that those of recipes/eval_tasks read. Out: values
and aggregates; `lm_eval.json`: lm-eval's own results and configuration; lines of `samples.jsonl`: what was asked and answered.

- A metric is `task/metric`. Where a task reads its answers with several filters, each is a metric of its own, spelled
  as lm-eval does: gsm8k gives `gsm8k/exact_match,strict-match` and `gsm8k/exact_match,flexible-extract`.
- An item is `subtask/id` by the row's own `id`; where a row lacks one, or two rows of a subtask share one, all of its
  items are `subtask/number`, by lm-eval's running number.
- lm-eval's groups (mmlu) have the items of all their subtasks, so their score is the mean over items, in which a large
  subtask counts for more than a small one.
- A document that is too long, with what is scored or may be written after it, is left out: lm-eval would cut it from the left, template
  and all, and score it. Its own results and aggregates are those of the documents that are left.
- A control token in a question or a choice is asked as the text that it is, as `choices` does, and counted under its task.
- A metric that is no mean over items (F1, Matthews correlation, perplexity) has no value per item, so no gate can use
  it. Its score is lm-eval's aggregate, called `task/metric/subtask` where there are several subtasks.
"""

import json
import math
import numbers
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rounds.data_prep import progress
from rounds.data_prep.errors import UserError
from rounds.train.engine.params import Task
from rounds.train.evaluation import choices, own_tasks
from rounds.train.tokens import chat


@dataclass(frozen=True, slots=True)
class Value:
    """What one item gave under a metric."""

    metric: str
    item: str
    value: float
    higher_is_better: bool


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What all `n` items gave together under a metric that is no mean over them; None where lm-eval gives no number."""

    metric: str
    value: float | None
    stderr: float | None
    n: int
    higher_is_better: bool


class _TooLongError(Exception):
    """Some documents do not fit: how long they are, by subtask and running number."""

    def __init__(self, lengths: dict[tuple[str, int], int]) -> None:
        super().__init__(f"{len(lengths)} documents")
        self.lengths = lengths


def wrap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, window: int, out: Path) -> Any:
    """Return a model as lm-eval asks it; it tells `out` how many sequences it has scored and answers it has written."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import normalize_gen_kwargs

    hugging_face_model: Any = HFLM

    control = chat.control_tokens(tokenizer)

    class Watched(hugging_face_model):
        sequences = 0
        task = ""
        asked: Any = None
        """What lm-eval wants scored; None in between."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.broken_up = Counter()

        def apply_chat_template(self, chat_history, *args, **kwargs):
            turns = [{**turn, "content": self._plain(turn["content"])} for turn in chat_history]
            return super().apply_chat_template(turns, *args, **kwargs)

        def _encode_pair(self, context, continuation):
            return super()._encode_pair(context, self._plain(continuation))

        def _plain(self, text):
            plain, times = control.subn(choices.as_text, text)
            if times:
                self.broken_up[self.task] += times
            return plain

        def loglikelihood(self, requests, *args, **kwargs):
            self.asked = requests
            try:
                return super().loglikelihood(requests, *args, **kwargs)
            finally:
                self.asked = None

        def _loglikelihood_tokens(self, requests, *args, **kwargs):
            if self.asked is not None:
                self._refuse_cut(self.asked, [len(context) + len(answer) for _, context, answer in requests])
            return super()._loglikelihood_tokens(requests, *args, **kwargs)

        def generate_until(self, requests, *args, **kwargs):
            options: Any = [normalize_gen_kwargs(request.args[1], self.max_gen_toks) for request in requests]
            read = [len(self.tok_encode(request.args[0])) for request in requests]
            self._refuse_cut(requests, [prompt + each["max_gen_toks"] for prompt, each in zip(read, options, strict=True)])
            return super().generate_until(requests, *args, **kwargs)

        def _refuse_cut(self, requests, lengths):
            """lm-eval would cut what is too long from the left, template and all, and score it."""
            found: dict[tuple[str, int], int] = {}
            for request, length in zip(requests, lengths, strict=True):
                if length > self.max_length:
                    key = (request.task_name, request.doc_id)
                    found[key] = max(length, found.get(key, 0))
            if found:
                raise _TooLongError(found)

        def _model_call(self, inps, *args, **kwargs):
            self._count(len(inps))
            return super()._model_call(inps, *args, **kwargs)

        def _model_generate(self, context, *args, **kwargs):
            self._count(len(context))
            return super()._model_generate(context, *args, **kwargs)

        def _count(self, more: int) -> None:
            self.sequences += more
            progress.write(out, self.sequences, None, "sequences of the tasks")

    # In a bf16 model's own type lm-eval would round each sum too: to halves from -64 nats on, so that long choices tie.
    return Watched(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=window, softmax_dtype="float32")


def run_tasks(
    lm: Any, tasks: Sequence[Task], sources: Mapping[str, Path], out: Path, too_long: choices.TooLong, log: TextIO, dropped: dict[str, Any]
) -> Iterator[Value | Aggregate]:
    """Ask a wrapped model every task, with the chat template applied. The files are complete when the iterator ends.

    Documents that do not fit are left out of all metrics, and counted in `dropped` by task; or, with `fail`, end the evaluation.
    """
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    # It would describe the machine after every task, by `pip list` among others: a second or more, for what nobody reads.
    evaluator.add_env_info = lambda storage: None
    manager = TaskManager(include_defaults=any(task.yaml is None for task in tasks))
    results: dict[str, Any] = {}
    for task in tasks:
        lm.task = task.name
        asked: Any = task.task if task.source is None else own_tasks.configuration(task, sources[task.source], out / "cache" / "tasks")
        loaded: Any = manager.load([asked])
        result, gone = _ask(lm, manager, loaded, task, too_long)
        dropped[task.name] = {choices.TOO_LONG: len(gone)} if gone else {}
        results[task.name] = {key: result[key] for key in ("results", "configs", "versions", "n-samples")}
        for subtask, samples in result["samples"].items():
            yield from _read_subtask(task, subtask, result)
            log.writelines(json.dumps({"task": subtask, **_shown(sample)}, default=str) + "\n" for sample in samples)
        log.writelines(
            json.dumps({"task": subtask, "doc_id": number, "dropped": choices.TOO_LONG}) + "\n" for subtask, number in sorted(gone)
        )
    (out / "lm_eval.json").write_text(json.dumps(results, indent=1, default=str) + "\n")


def _ask(
    lm: Any, manager: Any, loaded: dict[str, Any], task: Task, too_long: choices.TooLong
) -> tuple[dict[str, Any], dict[tuple[str, int], int]]:
    """Ask the documents of a task that fit. Returns lm-eval's result, and the lengths of those that do not, by subtask and number.

    lm-eval makes all requests before it scores one, so that what does not fit is known first; it is then asked for the others alone.
    """
    import lm_eval

    simple_evaluate: Any = lm_eval.simple_evaluate
    numbers = {name: len(each.eval_docs) for name, each in loaded["tasks"].items()}
    kept = {name: list(range(min(number, task.limit or number))) for name, number in numbers.items()}
    all_of_it = sum(map(len, kept.values()))
    gone: dict[tuple[str, int], int] = {}
    before = Counter(lm.broken_up)
    while True:
        try:
            result = simple_evaluate(
                model=lm,
                tasks=[loaded],
                task_manager=_Loaded(manager, loaded),
                num_fewshot=task.num_fewshot,
                limit=None if gone else task.limit,
                samples=kept if gone else None,
                apply_chat_template=True,
                log_samples=True,
                bootstrap_iters=100,
            )
            return result, gone
        except _TooLongError as error:
            # Its numbers count among the documents that were asked.
            found = {(name, kept[name][number]): length for (name, number), length in error.lengths.items()}
            gone |= found
            choices.refuse_too_long(f"task {task.name!r}", list(gone.values()), all_of_it, lm.max_length, too_long)
            kept = {name: [number for number in numbers if (name, number) not in found] for name, numbers in kept.items()}
            empty = [name for name, numbers in kept.items() if not numbers]
            if empty:
                asked = sum(1 for name, _ in gone if name == empty[0])
                raise choices.none_left(
                    task.name if len(kept) == 1 else empty[0], asked, lm.max_length, Counter({choices.TOO_LONG: asked})
                ) from None
            lm.broken_up = Counter(before)


class _Loaded:
    """lm-eval's task manager, which has the tasks already: read once, however often they are asked."""

    def __init__(self, manager: Any, loaded: dict[str, Any]) -> None:
        self._manager, self._loaded = manager, loaded

    def load(self, tasks: Any) -> dict[str, Any]:
        return self._loaded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)


def _read_subtask(task: Task, subtask: str, result: dict[str, Any]) -> Iterator[Value | Aggregate]:
    """Yield what one subtask gave, metric by metric and filter by filter; accuracy per group of our own rows, too."""
    samples, reported = result["samples"][subtask], result["results"][subtask]
    items = _items(subtask, samples)
    has_filters = len({sample["filter"] for sample in samples}) > 1
    for (metric, filter_name), given in _columns(subtask, samples).items():
        name = f"{task.name}/{metric}" + (f",{filter_name}" if has_filters else "")
        higher = result["higher_is_better"].get(subtask, {}).get(metric, True)
        aggregate = reported.get(f"{metric},{filter_name}")
        if not _is_mean(aggregate, [sample[metric] for sample in given]):
            stderr = reported.get(f"{metric}_stderr,{filter_name}")  # the text "N/A" where there is none
            name += f"/{subtask}" if len(result["samples"]) > 1 else ""
            yield Aggregate(name, _finite(aggregate), _finite(stderr), len(given), higher)
            continue
        for sample in given:
            item, value = items[sample["doc_id"]], float(sample[metric])
            yield Value(name, item, value, higher)
            if task.source is not None and metric in ("acc", "exact_match") and sample["doc"]["group"]:
                yield Value(f"{name}/{sample['doc']['group']}", item, value, higher)


def _columns(subtask: str, samples: Sequence[dict]) -> dict[tuple[str, str], list[dict]]:
    """Return the samples of every metric under every filter: one for each document. Raises `UserError` for more."""
    found: dict[tuple[str, str], dict[int, dict]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            column = found.setdefault((metric, sample["filter"]), {})
            if sample["doc_id"] in column:
                raise UserError(
                    f"task {subtask!r}: lm-eval gave {metric!r} twice for its document {sample['doc_id']} under filter "
                    f"{sample['filter']!r}; expected one value a document and filter"
                )
            column[sample["doc_id"]] = sample
    return {key: list(column.values()) for key, column in found.items()}


def _items(subtask: str, samples: Sequence[dict]) -> dict[int, str]:
    """Name every document of a subtask, from its running number: by the rows' own ids where all differ."""
    ids = {sample["doc_id"]: _id(sample) for sample in samples}
    own = None not in ids.values() and len({str(each) for each in ids.values()}) == len(ids)
    return {number: f"{subtask}/{each if own else number}" for number, each in ids.items()}


def _id(sample: dict) -> Any:
    return sample["doc"].get("id") if isinstance(sample["doc"], Mapping) else None


def _is_mean(aggregate: Any, values: Sequence[Any]) -> bool:
    """Tell whether a metric is the mean of numbers, by what lm-eval reports: a task's YAML may name any aggregation.

    Log-likelihoods, for one, are numbers per item, and perplexity is the exponential of their mean.
    """
    if not all(isinstance(value, numbers.Real | np.bool_) for value in (aggregate, *values)):
        return False
    mean = math.fsum(float(value) for value in values) / len(values)
    return math.isclose(float(aggregate), mean, rel_tol=1e-4, abs_tol=1e-6)  # lm-eval may have summed in float32


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, numbers.Real) and math.isfinite(value) else None


def _shown(sample: dict) -> dict[str, Any]:
    return {"doc_id": sample["doc_id"], "id": _id(sample), "filter": sample["filter"], "target": sample["target"],
            "answers": sample["filtered_resps"], **{m: sample[m] for m in sample["metrics"]}}  # fmt: skip
