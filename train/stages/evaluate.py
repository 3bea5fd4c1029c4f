"""Stage `evaluate`: what a policy scores on everything the recipe holds out.

In: `policy`; `task.<source>` (questions), `preferences.<source>` (pairs), `conversations`, `answers` (what stage `answers` wrote) with
`prompts.<set>` (what was asked), as the recipe asks. Of a model behind an endpoint (`evaluate_api`) only the last two. Out:
- `scores.json`: {"task/metric": {"value", "stderr", "n", "questions", "higher_is_better", "floors"}}; under `_protocol` how
  was measured
- `items.parquet`: metric, item id, value and question, one row per item, for paired comparison of two policies
- what tasks write and how their metrics are named: `choices`, `lm_eval`.

Standard errors take items that ask one question together. Where pairs come from several sources, an item is `source/id` and
each source has metrics of its own beside those of all. Counts: `dropped` are held-out rows that cannot be measured, by
reason; `aggregate_only` are metrics without items; `not_available` are averages, each with the part that was not measured;
`broken_up` are control tokens in what lm-eval asks, by task.
"""

import hashlib
import importlib.metadata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rounds.data_prep import progress, records
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import RECORDS
from rounds.train.config.cluster import Machine
from rounds.train.engine import policy, store, tracking
from rounds.train.engine.params import EvaluateParams
from rounds.train.engine.records import ITEMS, PROTOCOL, SCORES, Counts, Score
from rounds.train.evaluation import choices, lm_eval, questions, written
from rounds.train.evaluation.items import Items, add_averages
from rounds.train.generation import samples
from rounds.train.tokens import chat
from rounds.train.weights import choice_logprobs, logprobs, models

Floors = dict[str, dict[str, float]]
R = TypeVar("R", records.Pair, records.Conversation)
T = TypeVar("T", chat.EncodedPair, chat.Encoded)


@dataclass(frozen=True)
class Subject:
    """The policy in memory, how many rows it takes at once, and the longest row that it is given, in tokens."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    window: int
    too_long: choices.TooLong


def run(params: EvaluateParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Score the policy; returns the scores for `done.json`."""
    items, counts = Items(), {"aggregate_only": [], "broken_up": {}, "dropped": _unanswered(inputs, params)}
    floors: Floors = {}
    if "policy" in inputs:
        subject = _subject(params, inputs["policy"], machine)
        floors = _by_the_policy(subject, params, inputs, out, items, counts)
        protocol = _protocol(params, subject, machine)
    else:
        protocol = {"written_by": store.counts(inputs["answers"])["served"]}
    for name, path in inputs.items():
        if name.startswith("prompts."):
            _answers(name.removeprefix("prompts."), path, inputs["answers"], items)
    counts["not_available"] = add_averages(items, params.averages)
    found = {name: score.model_copy(update={"floors": floors[name]} if name in floors else {}) for name, score in items.scores().items()}
    items.write(out / ITEMS)
    told = {name: score.model_dump(exclude_unset=True) for name, score in found.items()}
    store.write_json(out / SCORES, {**told, PROTOCOL: protocol})
    tracking.scores({name: score.value for name, score in found.items()})
    return {"scores": {name: [round(score.value, 4), score.n] for name, score in found.items()}, **counts}


def _subject(params: EvaluateParams, folder: Path, machine: Machine) -> Subject:
    models.set_threads(machine)
    torch.manual_seed(0)
    described = policy.read(folder)
    tokenizer = models.load_tokenizer(described)
    model = models.load_to_score(described, machine)
    return Subject(model, tokenizer, machine.eval_batch_size, _window(model, params.max_length), params.too_long)


def _by_the_policy(subject: Subject, params: EvaluateParams, inputs: dict[str, Path], out: Path, items: Items, counts: Counts) -> Floors:
    """Measure what takes the policy itself: tasks, pairs and conversations. Returns floors by metric."""
    floors = _tasks(subject, params, inputs, out, items, counts) if params.tasks else {}
    pairs = {name.removeprefix("preferences."): path for name, path in inputs.items() if name.startswith("preferences.")}
    for name, path in pairs.items():
        counts["dropped"][f"preferences.{name}"] = _preferences(subject, path, out, items, name if len(pairs) > 1 else None)
    if "conversations" in inputs:
        counts["dropped"]["conversations"] = _conversations(subject, inputs["conversations"], out, items)
    return floors


def _unanswered(inputs: dict[str, Path], params: EvaluateParams) -> dict[str, dict[str, int]]:
    """Return the prompts that stage `answers` left out, by set and reason. Raises `UserError` where the recipe wants an end then."""
    dropped = store.counts(inputs["answers"]).get("dropped", {}) if "answers" in inputs else {}
    found = {str(name): dict(reasons) for name, reasons in dropped.items()} if isinstance(dropped, dict) else {}
    for name, reasons in found.items():
        if params.too_long == "fail" and (rows := reasons.get("too_long")):
            raise UserError(
                f"answers to {name!r}: {rows:,} prompts do not fit with the tokens that may be written after them within "
                "evaluate.max_length and what the model reads. Raise evaluate.max_length, lower the set's max_new_tokens, or set "
                "evaluate.too_long: drop, which leaves them out and counts them"
            )
    return found


def _window(model: PreTrainedModel, max_length: int) -> int:
    limit = getattr(model.config, "max_position_embeddings", None)
    return min(max_length, limit) if limit else max_length


def _tasks(subject: Subject, params: EvaluateParams, inputs: dict[str, Path], out: Path, items: Items, counts: Counts) -> Floors:
    """Ask the tasks: those that score choices here, the others through lm-eval. Counts metrics without items, where one that lm-eval has no
    number for has no score, control tokens in texts that were broken up, by task, and what was dropped. Returns floors by metric."""
    sources = {task.source: inputs[f"task.{task.source}"] for task in params.tasks if task.source}
    asked = {
        f"{task.name}/{row}": question
        for task in params.tasks
        if task.source
        for row, question in questions.of_folder(sources[task.source]).items()
    }
    floors: Floors = {}
    with (out / "samples.jsonl").open("w") as log:
        for task in params.tasks:
            if not task.built_in:
                continue

            def score(rows: Sequence[choice_logprobs.Asked], name: str = task.name) -> list[list[float]]:
                count = _counter(out, sum(len(choices) for _, choices in rows), f"choices of {name} scored")
                return choice_logprobs.score(subject.model, rows, subject.batch_size, count)

            path = sources[task.source or ""]
            found = choices.measure(task, path, subject.tokenizer, subject.window, params.too_long, score, log)
            for metric, values in found.values.items():
                for item, value in values.items():
                    items.add(metric, item, value, asked.get(item))
            floors |= found.floors
            counts["dropped"][task.name] = dict(found.dropped)
            counts["broken_up"] |= {task.name: found.broken_up} if found.broken_up else {}
        rest = [task for task in params.tasks if not task.built_in]
        if rest:
            lm = lm_eval.wrap(subject.model, subject.tokenizer, subject.batch_size, subject.window, out)
            for given in lm_eval.run_tasks(lm, rest, sources, out, params.too_long, log, counts["dropped"]):
                if not given.higher_is_better:
                    items.lower_is_better.add(given.metric)
                if isinstance(given, lm_eval.Value):
                    items.add(given.metric, given.item, given.value, asked.get(given.item))
                    continue
                counts["aggregate_only"].append(given.metric)
                if given.value is not None:
                    items.aggregates[given.metric] = Score(value=given.value, stderr=given.stderr, n=given.n)
            counts["broken_up"] |= dict(lm.broken_up)
    return floors


def _protocol(params: EvaluateParams, subject: Subject, machine: Machine) -> dict[str, Any]:
    """Say how was measured: what a reader needs to compare a score with one from elsewhere, or from a machine with another row."""
    template = str(subject.tokenizer.get_chat_template())
    return {
        "batch_size": subject.batch_size,
        "dtype": str(subject.model.dtype).removeprefix("torch."),
        "device": subject.model.device.type,
        "precision": machine.precision,
        "max_length": subject.window,
        "too_long": params.too_long,
        "chat_template": hashlib.sha256(template.encode()).hexdigest(),
        "normalisation": {"acc": "sum over the choice's tokens", "acc_norm": "by characters", "acc_bytes": "by bytes of UTF-8"},
        "versions": {name: importlib.metadata.version(name) for name in ("lm_eval", "transformers", "torch")},
        "tasks": {
            task.name: {
                "task": task.task,
                "scored_by": "rounds" if task.built_in else "lm_eval",
                "num_fewshot": task.num_fewshot,
                "limit": task.limit,
                "file": hashlib.sha256(task.yaml.encode()).hexdigest() if task.yaml else None,
            }
            for task in params.tasks
        },
    }


def _preferences(subject: Subject, source: Path, out: Path, items: Items, name: str | None) -> dict[str, int]:
    """Compare chosen and rejected answers by log-probability per token (as SimPO does: length alone wins nothing).

    `margin` is their difference in nats per token; `chosen_logp` and `rejected_logp` are sums over the answer. `name`
    is the source's, where there are several. Returns how many pairs cannot be measured, by reason.
    """
    pairs = [pair for pair in _by_hash(source) if isinstance(pair, records.Pair)]
    encoded = chat.encode_pairs(subject.tokenizer, pairs)
    usable, dropped = _usable(subject, pairs, encoded, _pair_length, "pairs")
    sides = [(tokens.prompt_ids, answer) for _, tokens in usable for answer in (tokens.chosen_ids, tokens.rejected_ids)]
    count = _counter(out, len(sides), "answers scored")
    sums = logprobs.answer_logprobs(subject.model, sides, subject.batch_size, count)
    for place, (pair, tokens) in enumerate(usable):
        chosen, rejected = sums[2 * place], sums[2 * place + 1]
        margin = chosen / len(tokens.chosen_ids) - rejected / len(tokens.rejected_ids)
        item, question = f"{name}/{pair.id}" if name else pair.id, questions.of(pair)
        # A group that is the prompt's own id is no kind of question: UltraFeedback has 2,000 of them.
        group = "" if records.prompt_id(pair) else pair.group
        part = "/".join(each for each in (name, group) if each)
        for metric in ("preferences/accuracy", *([f"preferences/accuracy/{part}"] if part else ())):
            items.add(metric, item, margin > 0, question)
        items.add("preferences/margin", item, margin, question)
        items.add("preferences/chosen_logp", item, chosen, question)
        items.add("preferences/rejected_logp", item, rejected, question)
    return dropped


def _conversations(subject: Subject, source: Path, out: Path, items: Items) -> dict[str, int]:
    """Measure the loss on held-out answers, in nats per token, one value per conversation. Returns how many conversations cannot be
    measured, by reason."""
    found = [record for record in _by_hash(source) if isinstance(record, records.Conversation)]
    encoded = chat.encode_conversations(subject.tokenizer, [record.messages for record in found])
    usable, dropped = _usable(subject, found, encoded, lambda tokens: len(tokens.input_ids), "conversations")
    rows = [(tokens.input_ids, tokens.answer_mask) for _, tokens in usable]
    count = _counter(out, len(rows), "conversations scored")
    sums = logprobs.masked_logprobs(subject.model, rows, subject.batch_size, count)
    for (record, tokens), total in zip(usable, sums, strict=True):
        items.add("conversations/loss", record.id, -total / sum(tokens.answer_mask), questions.of(record))
    items.lower_is_better.add("conversations/loss")
    return dropped


def _by_hash(source: Path) -> list[records.Record]:
    """Read held-out rows in an order by hash: the first of them are a fair sample and the same for every policy."""
    rows = records.read_records(source / RECORDS)
    return sorted(rows, key=lambda record: records.stable_hash("evaluate", record.id))


def _usable(
    subject: Subject, rows: Sequence[R], encoded: Sequence[T | str], length: Callable[[T], int], what: str
) -> tuple[list[tuple[R, T]], dict[str, int]]:
    """Return the rows that can be measured, and the others counted by reason. Raises `UserError` when none can."""
    kept: list[tuple[R, T]] = []
    dropped: Counter[str] = Counter()
    too_long: list[int] = []
    for row, tokens in zip(rows, encoded, strict=True):
        if isinstance(tokens, str):
            dropped[tokens] += 1
        elif length(tokens) > subject.window:
            dropped[choices.TOO_LONG] += 1
            too_long.append(length(tokens))
        else:
            kept.append((row, tokens))
    choices.refuse_too_long(what, too_long, len(rows), subject.window, subject.too_long)
    if not kept:
        raise UserError(
            f"none of the {len(rows)} held-out {what} can be measured within {subject.window} tokens, the lesser of "
            f"evaluate.max_length and what the model reads; dropped: {dict(dropped)}"
        )
    return kept, dict(dropped)


def _pair_length(tokens: chat.EncodedPair) -> int:
    return len(tokens.prompt_ids) + max(len(tokens.chosen_ids), len(tokens.rejected_ids))


def _answers(name: str, prompts: Path, answers: Path, items: Items) -> None:
    """Measure what was written to a set of prompts: of several answers to one prompt the mean."""
    rows = {row.id: row for row in records.read_records(prompts / RECORDS)}
    asked = {item: questions.of(row) for item, row in rows.items()}
    by_number: dict[int, list[written.Written]] = defaultdict(list)
    for each in samples.read(samples.file_of(answers, name)):
        item = each.prompt_id
        by_number[each.number].append(written.of(rows[item], item, asked[item], each.answer, each.tokens, each.ended))
    values: dict[tuple[str, str], list[written.Value]] = defaultdict(list)
    for given in by_number.values():
        for value in written.measure(given):
            values[value.metric, value.item].append(value)
    for (metric, item), found in values.items():
        items.add(f"{name}/{metric}", item, sum(each.value for each in found) / len(found), found[0].question)
        if found[0].higher_is_better is False:
            items.lower_is_better.add(f"{name}/{metric}")


def _counter(out: Path, total: int, unit: str) -> Callable[[int], None]:
    return lambda done: progress.write(out, done, total, unit)
