"""What evaluation reports equals what a few plain lines compute on the same model, item by item.

Covers: train/evaluation/questions.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rounds.data_prep import records
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Conversation, Message, Pair, Question
from rounds.train.config.cluster import Machine
from rounds.train.engine import policy, store
from rounds.train.engine.records import PROTOCOL
from rounds.train.evaluation import lm_eval
from rounds.train.tokens import chat
from rounds.train.weights import models

Run = Callable[..., tuple[Path, dict]]
REPOSITORY = Path(__file__).resolve().parents[3]
CPU = Machine(device="cpu", threads=1, eval_batch_size=5)
CHOICES = ("It blocks the pump.", "It opens the airways.", "It lowers glucose.", "It displaces opioids.")


def own_yaml(name: str) -> str:
    return (REPOSITORY / "recipes" / "eval_tasks" / f"{name}.yaml").read_text()


def task(name: str, kind: str = "choice_likelihood", limit: int | None = None) -> dict:
    yaml = None if kind == "choice_likelihood" else own_yaml(kind)
    return {"task": kind, "name": name, "source": "asked", "num_fewshot": 0, "limit": limit, "yaml": yaml}


def params(tasks: list[dict]) -> dict:
    return {"tasks": tasks, "max_length": 256}


@pytest.fixture
def questions(conversations: list[Conversation]) -> list[Question]:
    """Twelve closed questions, with quotation marks and braces in some, in two groups."""
    return [
        Question(f"q{number}", "made", conversations[number].messages[-2:-1], tuple(CHOICES[number % 3 :] + CHOICES[: number % 3])[:4],
                 number % 4, f"group{number % 2}")
        for number in range(10)
    ] + [
        Question(
            "quoted", "made", (Message("user", "Which of {{these}} is it: 'a' or \"b\"?"),), ("It's \"a\".", "It's 'b'."), 0, "group0"
        ),
        Question("lines", "made", (Message("user", "One.\n\nTwo?\n"),), ("Yes\nand no.", "No, é."), 1, "group1"),
    ]  # fmt: skip


@pytest.fixture
def policy_folder(shelf: Path) -> Path:
    """A policy with weights large enough to have opinions."""
    start = policy.read(shelf / "base")
    model = models.load_model(start, CPU)
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * torch.randn_like(parameter))
    (shelf / "other").mkdir()
    models.save_model(model, models.load_tokenizer(start), shelf / "other" / "model")
    policy.write_weights(shelf / "other", shelf / "base")
    return shelf / "other"


@pytest.fixture
def heldout(policy_folder: Path, put: Callable, questions: list, pairs: list[Pair], conversations: list) -> dict[str, Path]:
    """Everything that an evaluation may read."""
    return {"policy": policy_folder, "task.asked": put("asked", questions), "preferences.pairs": put("preferences", pairs),
            "conversations": put("conversations", conversations)}  # fmt: skip


@pytest.fixture
def model(policy_folder: Path) -> PreTrainedModel:
    """The same policy, loaded beside the stage."""
    return models.load_model(policy.read(policy_folder), CPU).eval()


@pytest.fixture
def tokenizer(policy_folder: Path):
    """The run's tokenizer."""
    return models.load_tokenizer(policy.read(policy_folder))


@torch.no_grad()
def token_logprobs(model: PreTrainedModel, ids: list[int]) -> list[float]:
    """Log-probability of each token but the first, one row at a time."""
    tokens = torch.tensor([ids])
    logps = model(input_ids=tokens).logits.double().log_softmax(-1)
    return logps[0, :-1].gather(-1, tokens[0, 1:, None])[:, 0].tolist()


def asked_ids(tokenizer: PreTrainedTokenizerFast, prompt: tuple[Message, ...]) -> list[int]:
    return tokenizer(chat.render_prompt(tokenizer, prompt), add_special_tokens=False)["input_ids"]


def answer_logprob(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> float:
    return math.fsum(token_logprobs(model, prompt + answer)[len(prompt) - 1 :])


def values(folder: Path, metric: str) -> dict[str, float]:
    table = pq.read_table(folder / "items.parquet").to_pylist()
    return {row["item"]: row["value"] for row in table if row["metric"] == metric}


def scores(folder: Path) -> dict:
    found = store.read_json(folder / "scores.json")
    assert isinstance(found, dict)
    found.pop(PROTOCOL)
    return found


def test_accuracy_is_that_of_the_likeliest_whole_answer(
    run_stage: Run, heldout: dict[str, Path], model: PreTrainedModel, tokenizer, questions: list[Question]
):
    inputs = {name: heldout[name] for name in ("policy", "task.asked")}
    out, counts = run_stage("evaluate", "scores", params([task("facts")]), inputs, CPU)
    wanted = {}
    for question in questions:
        prompt = chat.render_prompt(tokenizer, question.prompt)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        sums = []
        for choice in question.choices:
            whole = tokenizer(prompt + choice, add_special_tokens=False)["input_ids"]
            assert whole[: len(ids)] == ids
            sums.append(answer_logprob(model, ids, whole[len(ids) :]))
        wanted[f"facts/{question.id}"] = float(max(range(len(sums)), key=sums.__getitem__) == question.answer)
    assert values(out, "facts/acc") == wanted
    assert 0 < sum(wanted.values()) < len(wanted), "all alike: the test could not tell a mistake"
    score = scores(out)["facts/acc"]
    mean = sum(wanted.values()) / 12
    assert score["value"] == pytest.approx(mean) and score["n"] == 12 and score["higher_is_better"] is True
    # Some of the questions are asked in the same words, and count as one.
    apart = {question.prompt: 0.0 for question in questions}
    for question in questions:
        apart[question.prompt] += wanted[f"facts/{question.id}"] - mean
    number = len(apart)
    variance = math.fsum(each**2 for each in apart.values()) * number / (number - 1)
    assert 2 < number < 12 and score["questions"] == number
    assert score["stderr"] == pytest.approx(math.sqrt(variance) / 12)
    assert not (out / "lm_eval.json").exists()
    assert counts["scores"]["facts/acc"] == [round(mean, 4), 12]
    groups = [values(out, f"facts/acc/group{number}") for number in (0, 1)]
    assert groups[0] | groups[1] == wanted and len(groups[0]) == 6


class Watched:
    """Keeps the token rows that go into any embedding while it is on."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def __call__(self, module: torch.nn.Module, arguments: tuple) -> None:
        if isinstance(module, torch.nn.Embedding):
            self.rows += arguments[0].tolist()


@pytest.fixture
def watched() -> Iterator[Watched]:
    """Watch what models are given, from outside."""
    watch = Watched()
    handle = torch.nn.modules.module.register_module_forward_pre_hook(watch)
    yield watch
    handle.remove()


@pytest.mark.parametrize("adds_bos", [False, True], ids=["plain", "tokenizer adds BOS"])
def test_the_model_reads_one_bos_and_exactly_the_training_prompt(
    run_stage: Run, heldout: dict[str, Path], tokenizer, questions: list[Question], watched: Watched, adds_bos: bool
):
    """Llama 3's tokenizer puts a BOS before every text, and the chat template has put one there already."""
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    bos, bos_id = tokenizer.bos_token, tokenizer.bos_token_id
    assert isinstance(bos_id, int)
    if adds_bos:
        inner = tokenizer.backend_tokenizer
        inner.post_processor = processors.TemplateProcessing(single=f"{bos}:0 $A:0", special_tokens=[(str(bos), bos_id)])
        tokenizer.save_pretrained(policy.read(heldout["policy"]).tokenizer)
        assert models.load_tokenizer(policy.read(heldout["policy"]))("a")["input_ids"][0] == bos_id
    prompts = [asked_ids(tokenizer, question.prompt) for question in questions]
    run_stage("evaluate", "facts", params([task("facts")]), {name: heldout[name] for name in ("policy", "task.asked")}, CPU)
    drawn = [row for row in watched.rows if row[0] != bos_id]
    assert len(drawn) == 4, "the model is asked with drawn tokens whether it may share prompts: in one row, and three answers alone"
    packed = [row for row in watched.rows if row[0] == bos_id]
    asked = [before for row in packed for before in split(row, bos_id)]
    assert len(asked) == 12 and all(any(row[: len(prompt)] == prompt for row in asked) for prompt in prompts)
    watched.rows.clear()
    run_stage("evaluate", "scores", params([task("written", "free_answer", 3)]), heldout, CPU)
    first = [row for row in watched.rows if len(row) > 1]  # a row of one token goes on with a cached one
    assert len(first) > 16
    for row in first:
        while row[-1] == bos_id:  # rows are filled up on the right with token 0, which is this BOS
            row.pop()
        while row[0] == tokenizer.pad_token_id:
            row.pop(0)
        assert row.count(bos_id) == 1 and row[0] == bos_id, tokenizer.decode(row)
    written = sorted(questions, key=lambda question: records.stable_hash("evaluate", question.id))[:3]
    for question in written:
        prompt = asked_ids(tokenizer, question.prompt)
        assert any(row[: len(prompt)] == prompt for row in first)


def split(row: list[int], token: int) -> list[list[int]]:
    starts = [place for place, each in enumerate(row) if each == token]
    return [row[start:end] for start, end in zip(starts, [*starts[1:], len(row)], strict=True)]


def test_preferences_are_compared_per_token(run_stage: Run, heldout: dict[str, Path], model: PreTrainedModel, tokenizer, pairs: list[Pair]):
    inputs = {name: heldout[name] for name in ("policy", "preferences.pairs")}
    out, _ = run_stage("evaluate", "scores", params([]), inputs, CPU)
    margins = {}
    for pair, tokens in zip(pairs, chat.encode_pairs(tokenizer, pairs), strict=True):
        assert isinstance(tokens, chat.EncodedPair)
        sides = [(answer, answer_logprob(model, tokens.prompt_ids, answer)) for answer in (tokens.chosen_ids, tokens.rejected_ids)]
        margins[pair.id] = sides[0][1] / len(sides[0][0]) - sides[1][1] / len(sides[1][0])
        assert values(out, "preferences/chosen_logp")[pair.id] == pytest.approx(sides[0][1], abs=1e-3)
        assert values(out, "preferences/rejected_logp")[pair.id] == pytest.approx(sides[1][1], abs=1e-3)
    assert values(out, "preferences/margin") == pytest.approx(margins, abs=1e-4)
    right = {name: float(margin > 0) for name, margin in margins.items()}
    assert values(out, "preferences/accuracy") == right == values(out, "preferences/accuracy/wrong")
    assert 0 < sum(right.values()) < 16, "all alike: the test could not tell a mistake"
    score = scores(out)["preferences/accuracy"]
    mean = sum(right.values()) / 16
    assert score["value"] == pytest.approx(mean) and score["n"] == 16
    assert score["stderr"] == pytest.approx(math.sqrt(mean * (1 - mean) / 15))


def test_loss_is_that_of_the_answer_tokens(
    run_stage: Run, heldout: dict[str, Path], model: PreTrainedModel, tokenizer, conversations: list[Conversation]
):
    inputs = {name: heldout[name] for name in ("policy", "conversations")}
    out, _ = run_stage("evaluate", "scores", params([]), inputs, CPU)
    wanted = {}
    encoded = chat.encode_conversations(tokenizer, [each.messages for each in conversations])
    for conversation, tokens in zip(conversations, encoded, strict=True):
        assert isinstance(tokens, chat.Encoded)
        found = [value for value, learnt in zip(token_logprobs(model, tokens.input_ids), tokens.answer_mask[1:], strict=True) if learnt]
        wanted[conversation.id] = -math.fsum(found) / len(found)
    assert values(out, "conversations/loss") == pytest.approx(wanted, abs=1e-4)
    score = scores(out)["conversations/loss"]
    assert (score["n"], score["higher_is_better"]) == (32, False)


def test_answers_are_measured_by_their_prompt(run_stage: Run, heldout: dict[str, Path]):
    """Of several answers to one prompt the mean; prompts of one question together."""
    wanted = {"name": "open", "max_rows": 6, "max_new_tokens": 8, "temperature": 1.0, "num_answers": 3, "system_prompt": None}
    inputs = {"policy": heldout["policy"], "prompts.open": heldout["preferences.pairs"]}
    answers, _ = run_stage("answers", "answers", {"sets": [wanted], "max_length": 256, "seed": 1}, inputs, CPU)
    out, _ = run_stage("evaluate", "scores", params([]), {**inputs, "answers": answers}, CPU)
    rows = pq.read_table(answers / "open.parquet").to_pylist()
    assert len(rows) == 18
    for metric, column in (("open/tokens", "tokens"), ("open/ended", "ended")):
        found = values(out, metric)
        assert found.keys() == {row["prompt_id"] for row in rows} and scores(out)[metric]["n"] == 6
        for item, value in found.items():
            assert value == pytest.approx(sum(row[column] for row in rows if row["prompt_id"] == item) / 3)


def test_lm_evals_own_results_have_their_standard_error(run_stage: Run, heldout: dict[str, Path], put: Callable, questions: list[Question]):
    """Ours is the same where each question is asked once."""
    once = {question.prompt: question for question in questions}
    inputs = {"policy": heldout["policy"], "task.asked": put("once", list(once.values()))}
    out, _ = run_stage("evaluate", "scores", params([{**task("facts"), "yaml": CHOICES_BY_LM_EVAL}]), inputs, CPU)
    reported = json.loads((out / "lm_eval.json").read_text())["facts"]["results"]["facts"]
    assert reported["acc_stderr,none"] == pytest.approx(scores(out)["facts/acc"]["stderr"])


def test_a_limit_asks_the_same_questions_of_every_policy(run_stage: Run, heldout: dict[str, Path], shelf: Path):
    inputs = {name: heldout[name] for name in ("policy", "task.asked")}
    asked = params([task("facts", limit=5), task("written", "free_answer", 4)])
    one, _ = run_stage("evaluate", "one", asked, inputs, CPU)
    two, _ = run_stage("evaluate", "two", asked, {**inputs, "policy": shelf / "base"}, CPU)
    assert len(values(one, "facts/acc")) == 5 and scores(one)["facts/acc"]["n"] == 5
    assert values(one, "facts/acc").keys() == values(two, "facts/acc").keys()
    assert len(values(one, "written/exact_match")) == 4


def test_every_score_has_its_number_and_error(run_stage: Run, heldout: dict[str, Path]):
    out, _ = run_stage("evaluate", "scores", params([task("facts")]), heldout, CPU)
    for metric, score in scores(out).items():
        floors = {"floors"} if metric.startswith("facts/") else set()
        assert set(score) == {"value", "stderr", "n", "questions", "higher_is_better"} | floors, metric
        assert score["n"] == len(values(out, metric)) > 1
        assert math.isfinite(score["value"]) and math.isfinite(score["stderr"])
    assert {
        "facts/acc",
        "preferences/accuracy",
        "preferences/margin",
        "conversations/loss",
    } <= set(scores(out))


def test_scores_say_how_was_measured(run_stage: Run, heldout: dict[str, Path]):
    inputs = {name: heldout[name] for name in ("policy", "task.asked")}
    out, _ = run_stage("evaluate", "scores", params([task("facts", limit=5), task("written", "free_answer", 2)]), inputs, CPU)
    told = store.protocol(out)
    assert (told["batch_size"], told["dtype"], told["max_length"], told["too_long"]) == (5, "float32", 256, "drop")
    assert told["versions"].keys() == {"lm_eval", "transformers", "torch"} and len(told["chat_template"]) == 64
    assert told["tasks"]["facts"] == {"task": "choice_likelihood", "scored_by": "rounds", "num_fewshot": 0, "limit": 5, "file": None}
    assert told["tasks"]["written"]["scored_by"] == "lm_eval" and len(told["tasks"]["written"]["file"]) == 64
    assert PROTOCOL not in store.scores(out) and store.scores(out)["facts/acc"].floors.keys() == {"chance", "constant", "longest"}


def test_what_is_too_long_ends_the_evaluation_where_the_recipe_says_so(
    run_stage: Run, heldout: dict[str, Path], put: Callable, pairs: list
):
    long = Pair("long", "made", (Message("user", "Why? " * 200),), "It is.", "It is not.")
    inputs = {"policy": heldout["policy"], "preferences.pairs": put("with-long", [*pairs, long])}
    with pytest.raises(UserError, match=r"pairs: 1 of 17 rows are longer than 256 tokens.*too_long: drop"):
        run_stage("evaluate", "scores", {**params([]), "too_long": "fail"}, inputs, CPU)


def test_evaluating_twice_gives_the_same_scores(run_stage: Run, heldout: dict[str, Path]):
    once, again = (run_stage("evaluate", name, params([task("facts")]), heldout, CPU)[0] for name in ("once", "again"))
    assert scores(once) == scores(again)


def test_pairs_that_do_not_fit_the_window_are_not_scored_as_something_else(
    run_stage: Run, heldout: dict[str, Path], put: Callable, pairs: list[Pair]
):
    long = Pair("long", "made", (Message("user", "Why? " * 200),), "It is.", "It is not.")
    inputs = {"policy": heldout["policy"], "preferences.pairs": put("with-long", [*pairs, long])}
    out, _ = run_stage("evaluate", "scores", params([]), inputs, CPU)
    assert set(values(out, "preferences/accuracy")) == {pair.id for pair in pairs}


FILTERS = """
filter_list:
  - name: as-written
    filter: [{function: take_first}]
  - name: always-airways
    filter:
      - {function: regex, regex_pattern: "(never written)", fallback: "It opens the airways."}
      - {function: take_first}
"""
CHOICES_BY_LM_EVAL = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
LIKELIHOOD = """
task: likelihood
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
target_delimiter: ""
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def test_each_filter_is_a_metric_with_every_item(run_stage: Run, heldout: dict[str, Path], questions: list[Question], put: Callable):
    two = {**task("written", "free_answer"), "yaml": own_yaml("free_answer") + FILTERS}
    inputs = {name: heldout[name] for name in ("policy", "task.asked")}
    out, _ = run_stage("evaluate", "scores", params([two]), inputs, CPU)
    right = {f"written/{each.id}": float(each.choices[each.answer] == "It opens the airways.") for each in questions}
    assert values(out, "written/exact_match,always-airways") == right and 0 < sum(right.values()) < 12
    assert values(out, "written/exact_match,as-written") == dict.fromkeys(right, 0.0)
    assert values(out, "written/exact_match,always-airways/group1").keys() < right.keys()
    assert "written/exact_match" not in scores(out)
    reported = json.loads((out / "lm_eval.json").read_text())["written"]["results"]["written"]
    assert reported["exact_match,always-airways"] == scores(out)["written/exact_match,always-airways"]["value"]


@pytest.mark.parametrize("filters", ["", FILTERS], ids=["one filter", "two filters"])
def test_rows_that_share_an_id_stay_two_items(
    run_stage: Run, heldout: dict[str, Path], questions: list[Question], put: Callable, filters: str
):
    shared = [*(dataclasses.replace(question, id="same") for question in questions[:3]), *questions[3:]]
    inputs = {"policy": heldout["policy"], "task.asked": put("shared", shared)}
    two = {**task("written", "free_answer"), "yaml": own_yaml("free_answer") + filters}
    out, _ = run_stage("evaluate", "scores", params([two]), inputs, CPU)
    found = scores(out)
    for metric in ("as-written", "always-airways") if filters else ("",):
        metric = f"written/exact_match,{metric}".rstrip(",")
        assert values(out, metric).keys() == {f"written/{number}" for number in range(12)}
        assert found[metric]["n"] == 12


def test_a_metric_that_is_no_mean_over_items_is_lm_evals_aggregate(
    run_stage: Run, heldout: dict[str, Path], model: PreTrainedModel, tokenizer, questions: list[Question]
):
    inputs = {name: heldout[name] for name in ("policy", "task.asked")}
    facts = {**task("facts"), "yaml": CHOICES_BY_LM_EVAL + "  - metric: mcc\n"}
    asked = params([facts, {**task("likely"), "yaml": LIKELIHOOD}])
    out, counts = run_stage("evaluate", "scores", asked, inputs, CPU)
    assert counts["aggregate_only"] == ["facts/mcc", "likely/perplexity"]
    reported = json.loads((out / "lm_eval.json").read_text())
    found = scores(out)
    own = reported["facts"]["results"]["facts"]
    wanted = {"value": own["mcc,none"], "stderr": own["mcc_stderr,none"], "n": 12, "higher_is_better": True}
    assert found["facts/mcc"] == wanted
    sums = []
    for question in questions:
        prompt = chat.render_prompt(tokenizer, question.prompt)
        read, whole = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (
                prompt.rstrip(),
                prompt + question.choices[question.answer],
            )  # lm-eval scores the last newlines
        )
        sums.append(answer_logprob(model, read, whole[len(read) :]))
    assert found["likely/perplexity"]["value"] == pytest.approx(math.exp(-math.fsum(sums) / 12), rel=1e-4)
    assert found["likely/perplexity"]["n"] == 12 and found["likely/perplexity"]["higher_is_better"] is False
    assert not values(out, "facts/mcc") and not values(out, "likely/perplexity")
    assert len(values(out, "facts/acc")) == len(values(out, "likely/acc")) == 12


def test_what_cannot_be_measured_is_counted_by_reason(
    run_stage: Run, heldout: dict[str, Path], put: Callable, pairs: list[Pair], conversations: list[Conversation]
):
    long, control = (Message("user", text) for text in ("Why? " * 200, "<|eot_id|>"))
    answer = Message("assistant", "It is.")
    inputs = {
        "policy": heldout["policy"],
        "preferences.pairs": put("some-pairs", [*pairs, *(Pair(name, "made", (each,), "It is.", "It is not.")
                                                    for name, each in (("a", long), ("b", long), ("c", control)))]),
        "conversations": put("some", [*conversations, Conversation("d", "made", (long, answer)),
                                      Conversation("e", "made", (control, answer))]),
    }  # fmt: skip
    out, counts = run_stage("evaluate", "scores", params([]), inputs, CPU)
    assert counts["dropped"] == {
        "preferences.pairs": {"longer_than_max_length": 2, "control_token_in_text": 1},
        "conversations": {"longer_than_max_length": 1, "control_token_in_text": 1},
    }
    assert len(values(out, "preferences/margin")) == 16 and len(values(out, "conversations/loss")) == 32
    assert "dropped" not in scores(out)


def test_preferences_keep_to_max_length(run_stage: Run, heldout: dict[str, Path], tokenizer, pairs: list[Pair]):
    inputs = {name: heldout[name] for name in ("policy", "preferences.pairs")}
    lengths = {}
    for pair, tokens in zip(pairs, chat.encode_pairs(tokenizer, pairs), strict=True):
        assert isinstance(tokens, chat.EncodedPair)
        lengths[pair.id] = len(tokens.prompt_ids) + max(len(tokens.chosen_ids), len(tokens.rejected_ids))
    limit = sorted(lengths.values())[8]
    asked = {**params([]), "max_length": limit}
    out, counts = run_stage("evaluate", "scores", asked, inputs, CPU)
    fitting = {name for name, length in lengths.items() if length <= limit}
    assert values(out, "preferences/margin").keys() == fitting and 0 < len(fitting) < 16
    assert counts["dropped"] == {"preferences.pairs": {"longer_than_max_length": 16 - len(fitting)}}


@pytest.mark.parametrize("what", ["preferences.pairs", "conversations"])
def test_nothing_to_measure_is_refused_with_the_reasons(run_stage: Run, heldout: dict[str, Path], what: str):
    inputs = {name: heldout[name] for name in ("policy", what)}
    with pytest.raises(UserError, match=r"can be measured within 4 tokens.*longer_than_max_length.: (16|32)\}"):
        run_stage("evaluate", "scores", {**params([]), "max_length": 4}, inputs, CPU)


def test_two_rows_of_one_id_are_refused_rather_than_counted_as_one(
    run_stage: Run, heldout: dict[str, Path], put: Callable, pairs: list[Pair]
):
    inputs = {"policy": heldout["policy"], "preferences.pairs": put("twice", [*pairs, pairs[0]])}
    with pytest.raises(UserError, match=f"two held-out rows are called '{pairs[0].id}'"):
        run_stage("evaluate", "scores", params([]), inputs, CPU)


def test_pairs_of_several_sources_are_measured_together_and_apart(
    run_stage: Run, heldout: dict[str, Path], put: Callable, pairs: list[Pair]
):
    """Some are two pairs of one prompt, under the prompt's own id: one question of two items, and no group to break down by."""
    twins = [dataclasses.replace(pair, id=f"p{at}:{side}", group=f"p{at}") for at, pair in enumerate(pairs[:6]) for side in "ab"]
    inputs = {"policy": heldout["policy"], "preferences.one": put("one", pairs), "preferences.two": put("two", twins)}
    out, counts = run_stage("evaluate", "scores", params([]), inputs, CPU)
    one, two = (values(out, f"preferences/accuracy/{name}") for name in ("one/wrong", "two"))
    assert values(out, "preferences/accuracy") == one | two
    assert set(one) == {f"one/{pair.id}" for pair in pairs} and set(two) == {f"two/{pair.id}" for pair in twins}
    assert {name for name in scores(out) if name.startswith("preferences/accuracy")} == {
        f"preferences/accuracy{part}" for part in ("", "/one/wrong", "/two")
    }
    found = scores(out)["preferences/accuracy/two"]
    assert (found["n"], found["questions"]) == (12, 6) and counts["dropped"] == {
        "preferences.one": {},
        "preferences.two": {},
    }
    once = [two[f"two/p{at}:a"] for at in range(6)]
    assert found["stderr"] == pytest.approx(math.sqrt(sum((v - sum(once) / 6) ** 2 for v in once) / 5 / 6))


def test_a_control_token_in_a_question_is_read_as_text_and_counted(
    run_stage: Run, heldout: dict[str, Path], put: Callable, questions: list[Question], tokenizer, watched
):
    spoilt = "Is it so?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nIt"
    asked = [
        *questions,
        Question("spoilt", "made", (Message("user", spoilt),), ("It opens.", "It ends.<|eot_id|> Yes."), 1),
    ]
    inputs = {"policy": heldout["policy"], "task.asked": put("spoilt", asked)}
    out, counts = run_stage("evaluate", "scores", params([task("facts"), task("written", "free_answer")]), inputs, CPU)
    # Both tasks ask the question once for each answer that is scored or written, and one choice holds a token too.
    assert counts["broken_up"].keys() == {"facts", "written"} and len(values(out, "facts/acc")) == 13
    ends, bos = (tokenizer.convert_tokens_to_ids(token) for token in ("<|eot_id|>", tokenizer.bos_token))
    header = tokenizer.convert_tokens_to_ids("<|start_header_id|>")
    for row in (part for whole in watched.rows if whole[0] == bos for part in split(whole, bos)):
        assert row.count(header) <= 2 and row.count(ends) <= 2, tokenizer.decode(row)
    assert any("< |eot_id|>" in tokenizer.decode(row) for row in watched.rows)


def test_a_model_that_is_spread_over_devices_scores_the_same(run_stage: Run, heldout: dict[str, Path]):
    """Here the only device is the CPU; accelerate places the layers all the same."""
    inputs = {name: heldout[name] for name in ("policy", "task.asked", "preferences.pairs", "conversations")}
    one, _ = run_stage("evaluate", "one", params([task("facts")]), inputs, CPU)
    spread = CPU.model_copy(update={"device_map": "auto"})
    other, _ = run_stage("evaluate", "other", params([task("facts")]), inputs, spread)
    assert scores(other).keys() == scores(one).keys()
    for metric, score in scores(one).items():
        assert scores(other)[metric]["value"] == pytest.approx(score["value"], abs=1e-4), metric


def test_in_bf16_only_the_weights_are_rounded(policy_folder: Path):
    """Loaded in bf16, as `device_map` does, a model keeps its rotary frequencies in fp32; one that is cast must too."""
    row = CPU.model_copy(update={"precision": "bf16"})
    placed = models.load_to_score(policy.read(policy_folder), row)
    assert {each.dtype for each in placed.parameters()} == {torch.bfloat16}
    spread = models.load_to_score(policy.read(policy_folder), row.model_copy(update={"device_map": "auto"}))
    for name, buffer in spread.named_buffers():
        assert torch.equal(placed.get_buffer(name), buffer) and buffer.dtype == torch.float32, name


def test_in_bf16_the_sum_over_a_long_choice_is_not_rounded(policy_folder: Path, tokenizer, tmp_path: Path):
    model = models.load_to_score(policy.read(policy_folder), CPU.model_copy(update={"precision": "bf16"}))
    lm = lm_eval.wrap(model, tokenizer, 2, 256, tmp_path)
    prompt, answer = (
        tokenizer("What does it do?").input_ids,
        tokenizer("It opens the airways of the lung. " * 3).input_ids,
    )
    found, _ = lm._loglikelihood_tokens([(None, prompt, answer)], disable_tqdm=True)[0]
    assert found == pytest.approx(answer_logprob(model, prompt, answer), abs=1e-3) and found < -64
