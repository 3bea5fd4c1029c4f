"""Packed conversations do not see each other, nothing is cut, and what does not fit is counted.

Covers: train/tokens/lengths, train/tokens/packed_row.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.modeling_flash_attention_utils import _is_packed_sequence, prepare_fa_kwargs_from_position_ids
from trl.trainer.utils import add_fused_lm_head

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Conversation, Message
from rounds.train.stages.sft import PackedRows, in_segments, learnt
from rounds.train.weights import packed_attention
from tests.train.tokens import families

Run = Callable[..., tuple[Path, dict]]
PAD = 1
ROW = 256


@pytest.fixture
def packed(run_stage: Run, shelf: Path, put: Callable, conversations: list[Conversation]) -> tuple[list[dict], dict]:
    """The made conversations in rows, and the counts."""
    inputs = {"tokenizer": shelf / "base", "data": put("data", conversations)}
    out, counts = run_stage("pack", "pack", {"max_length": ROW}, inputs)
    return pq.read_table(out / "rows.parquet").to_pylist(), counts


def random_llama(attention: str) -> LlamaForCausalLM:
    """Weights large enough that what a token can see shows in every logit."""
    torch.manual_seed(3)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = LlamaConfig(vocab_size=500, max_position_embeddings=512, initializer_range=0.3, **shape)
    config._attn_implementation = attention
    model = LlamaForCausalLM(config).eval()
    assert model.config._attn_implementation == attention
    return model


@torch.no_grad()
def logprobs(model: LlamaForCausalLM, **batch: torch.Tensor) -> torch.Tensor:
    """Log-probability of every token but the first of each row, given those before."""
    logits = model(**batch, use_cache=False).logits.log_softmax(-1)
    return logits[:, :-1].gather(-1, batch["input_ids"][:, 1:, None])[..., 0]


def largest_difference(model: LlamaForCausalLM, rows: list[dict], **extra: torch.Tensor) -> float:
    """Compare each packed document's tokens with the same document alone."""
    batch = PackedRows(PAD)(rows)
    del batch["labels"]
    together = logprobs(model, **batch, **extra)
    worst = 0.0
    for place, row in enumerate(rows):
        start = 0
        for length in row["seq_lengths"]:
            alone = logprobs(model, input_ids=torch.tensor([row["input_ids"][start : start + length]]))
            worst = max(worst, float((together[place, start : start + length - 1] - alone[0]).abs().max()))
            start += length
    return worst


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_conversation_reads_as_if_it_were_alone(packed: tuple[list[dict], dict], attention: str):
    rows = packed[0]
    assert max(len(row["seq_lengths"]) for row in rows) >= 3
    assert len({len(row["input_ids"]) for row in rows}) > 1, "no row is padded, so padding is not tested"
    model = random_llama(attention)
    assert largest_difference(model, rows) < 1e-5
    # With a mask of ones, as most collators give, they do see each other: the check above can fail.
    ones = torch.ones_like(PackedRows(PAD)(rows)["input_ids"])
    assert largest_difference(model, rows, attention_mask=ones) > 0.1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_so_it_does_under_a_sliding_window(packed: tuple[list[dict], dict], attention: str):
    """Segments do not serve such a model, so the mask of its rows must keep conversations apart."""
    torch.manual_seed(3)
    config = MistralConfig(
        vocab_size=500,
        max_position_embeddings=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=16,
        initializer_range=0.3,
    )
    config._attn_implementation = attention
    model: Any = MistralForCausalLM(config).eval()
    assert packed_attention.obstacle(model)
    assert largest_difference(model, packed[0]) < 1e-5


def test_the_borders_that_flash_attention_gets_are_those_of_the_conversations(packed: tuple[list[dict], dict]):
    rows = packed[0][:3]
    lengths = [length for row in rows for length in row["seq_lengths"]]
    single = [{"input_ids": [5, 6], "labels": [-100, 6], "seq_lengths": [1, 1]}]
    for given, wanted in ((rows, lengths), (single, [1, 1])):
        positions = PackedRows(PAD, flat=True)(given)["position_ids"]
        assert _is_packed_sequence(positions, batch_size=1)
        (queries, keys), (longest, _) = prepare_fa_kwargs_from_position_ids(positions)
        assert queries.diff().tolist() == keys.diff().tolist() == wanted and int(longest) == max(wanted)
    assert not _is_packed_sequence(PackedRows(PAD)(rows)["position_ids"], batch_size=len(rows))


def test_the_collator_gives_no_mask_and_restarts_positions():
    rows = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, -100, 8, 9], "seq_lengths": [2, 3]},
        {"input_ids": [5, 6, 7], "labels": [-100, -100, 7], "seq_lengths": [3]},
    ]
    batch = PackedRows(PAD)(rows)
    assert batch.keys() == {"input_ids", "labels", "position_ids"}
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 0, 1]]
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [5, 6, 7, PAD, PAD]]
    assert batch["labels"].tolist() == [[-100, 6, -100, 8, 9], [-100, -100, 7, -100, -100]]
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_every_conversation_is_in_the_rows_once_and_whole(packed: tuple[list[dict], dict], shelf: Path, conversations: list[Conversation]):
    from rounds.train.engine import policy
    from rounds.train.tokens import chat
    from rounds.train.weights import models

    rows, counts = packed
    tokenizer = models.load_tokenizer(policy.read(shelf / "base"))
    encoded = chat.encode_conversations(tokenizer, [each.messages for each in conversations])
    wanted = sorted(tuple(each.input_ids) for each in encoded if isinstance(each, chat.Encoded) and len(each.input_ids) <= ROW)
    found = []
    for row in rows:
        assert len(row["input_ids"]) == len(row["labels"]) == sum(row["seq_lengths"]) <= ROW
        start = 0
        for length in row["seq_lengths"]:
            found.append(tuple(row["input_ids"][start : start + length]))
            assert row["labels"][start] == -100
            start += length
    assert sorted(found) == wanted
    assert counts["conversations"] == len(wanted)


def test_labels_are_the_answer_tokens_and_nothing_else(packed: tuple[list[dict], dict]):
    rows, counts = packed
    learnt = sum(label != -100 for row in rows for label in row["labels"])
    assert learnt == counts["answer_tokens"] > 0
    assert all(label in (-100, token) for row in rows for token, label in zip(row["input_ids"], row["labels"], strict=True))


def test_fill_is_the_share_of_the_rows_that_holds_tokens(packed: tuple[list[dict], dict]):
    rows, counts = packed
    tokens = sum(len(row["input_ids"]) for row in rows)
    assert counts["tokens"] == tokens and counts["rows"] == len(rows)
    assert counts["fill"] == round(tokens / (ROW * len(rows)), 4)
    assert 0.5 < counts["fill"] <= 1
    assert sum(counts["length_histogram"].values()) == counts["conversations"]
    made = counts["by_source"]["made"]
    assert (made["rows"], made["tokens"]) == (counts["conversations"], tokens)
    assert made["answer_tokens"] == counts["answer_tokens"]
    assert made["histogram"] == counts["length_histogram"]


def test_what_does_not_fit_is_dropped_whole_and_counted(run_stage: Run, shelf: Path, put: Callable, packed: tuple[list[dict], dict]):
    longest = max(length for row in packed[0] for length in row["seq_lengths"])
    long = Conversation("long", "made", (Message("user", "Why? " * 40), Message("assistant", "It is so.")))
    control = Conversation("control", "made", (Message("user", "<|eot_id|>"), Message("assistant", "It is so.")))
    short = Conversation("short", "made", (Message("user", "Why?"), Message("assistant", "It is so.")))
    inputs = {"tokenizer": shelf / "base", "data": put("more", [long, control, short])}
    out, counts = run_stage("pack", "packed-more", {"max_length": longest}, inputs)
    assert counts["dropped"] == {"longer_than_max_length": 1, "control_token_in_text": 1}
    assert (counts["conversations"], counts["rows"]) == (1, 1)
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert [(each["id"], each["reason"]) for each in dropped] == [
        ("long", "longer_than_max_length"),
        ("control", "control_token_in_text"),
    ]
    assert "text" not in dropped[0] and "Why?" not in (out / "dropped.jsonl").read_text()


def test_a_conversation_as_long_as_a_row_is_kept(run_stage: Run, shelf: Path, put: Callable, packed: tuple[list[dict], dict]):
    length = packed[0][0]["seq_lengths"][0]
    first = packed[0][0]["input_ids"][:length]
    from rounds.train.engine import policy
    from rounds.train.weights import models

    text = models.load_tokenizer(policy.read(shelf / "base")).decode(first)
    assert isinstance(text, str)
    question, answer = (part.partition("<|eot_id|>")[0] for part in text.split("<|end_header_id|>\n\n")[-2:])
    one = Conversation("one", "made", (Message("user", question), Message("assistant", answer)))
    inputs = {"tokenizer": shelf / "base", "data": put("one", [one])}
    exact = run_stage("pack", "wide", {"max_length": ROW}, inputs)[1]["tokens"]
    assert run_stage("pack", "exact", {"max_length": exact}, inputs)[1]["fill"] == 1.0
    with pytest.raises(UserError, match=r"no conversation is left.*longer_than_max_length"):
        run_stage("pack", "tight", {"max_length": exact - 1}, inputs)


def test_the_flat_layout_for_flash_attention_reads_as_the_rows_do(packed: tuple[list[dict], dict]):
    rows = packed[0][:3]
    model = random_llama("sdpa")
    by_row, flat = PackedRows(PAD)(rows), PackedRows(PAD, flat=True)(rows)
    assert flat["input_ids"].shape == (1, sum(len(row["input_ids"]) for row in rows))
    losses = []
    for batch in (by_row, flat):
        labels = batch.pop("labels")[:, 1:]
        losses.append(logprobs(model, **batch)[labels != -100])
    assert torch.allclose(losses[0], losses[1], atol=1e-5)


def scores_and_gradient(model: LlamaForCausalLM, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the learnt tokens as TRL's trainer asks for them, and the gradient of their sum."""
    model.zero_grad()
    outputs: Any = model(**batch, use_cache=False, fused_lm_head=True)  # type: ignore[call-arg]
    found = outputs.log_probs[outputs.label_mask]
    found.sum().backward()
    return found.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_a_row_in_segments_gives_each_conversation_the_numbers_and_gradients_that_it_has_alone(
    packed: tuple[list[dict], dict],
):
    rows = packed[0][:3]
    model = random_llama("sdpa")
    add_fused_lm_head(model)
    lone = [
        (row["input_ids"], row["labels"], start, length)
        for row in rows
        for start, length in zip(starts(row["seq_lengths"]), row["seq_lengths"], strict=True)
    ]
    assert len(lone) >= 6
    wanted = []
    for ids, labels, start, length in lone:
        part = slice(start, start + length)
        wanted.append(scores_and_gradient(model, {"input_ids": torch.tensor([ids[part]]), "labels": torch.tensor([labels[part]])}))
    dense = PackedRows(PAD)(rows)
    by_mask = scores_and_gradient(model, dense)
    packed_attention.install(model)
    found, gradient = scores_and_gradient(model, in_segments(rows))
    assert torch.allclose(found, torch.cat([scores for scores, _ in wanted]), atol=1e-5)
    assert torch.allclose(found, by_mask[0], atol=1e-5)
    for other in (by_mask[1], torch.stack([each for _, each in wanted]).sum(0)):
        assert float((gradient - other).abs().max()) <= 1e-5 * float(other.abs().max())


def starts(lengths: list[int]) -> list[int]:
    return [sum(lengths[:place]) for place in range(len(lengths))]


def test_learnt_tokens_are_counted_row_by_row_in_any_slice_of_a_table():
    labels = pa.array([[-100, 1, 2], [], [3], [-100, -100]], pa.list_(pa.int32()))
    assert learnt(labels) == [2, 0, 1, 0]
    assert learnt(labels.slice(1, 2)) == [0, 1]


def test_answers_that_the_template_rewrites_are_not_learnt_unless_each_has_a_row(run_stage: Run, shelf: Path, put: Callable):
    families.tokenizer(families.QWEN3).save_pretrained(shelf / "base" / "tokenizer")
    turns = [Message("user", "Why?"), Message("assistant", "It is so."), Message("user", "And then?"), Message("assistant", "It goes on.")]
    half = [Message("user", "Why?"), Message("assistant", "Not this.", learnt=False), *turns[2:]]
    inputs = {
        "tokenizer": shelf / "base",
        "data": put("data", [Conversation("a", "made", tuple(turns)), Conversation("b", "made", tuple(half))]),
    }

    def learnt_texts(name: str, **params: Any) -> tuple[list[str], dict]:
        out, counts = run_stage("pack", name, {"max_length": ROW, **params}, inputs)
        tokenizer = families.tokenizer(families.QWEN3)
        labels = [[label for label in row["labels"] if label != -100] for row in pq.read_table(out / "rows.parquet").to_pylist()]
        return sorted(text for ids in labels for text in str(tokenizer.decode(ids)).split("<|im_end|>") if text), counts

    think = "<think>\n\n</think>\n\n"
    texts, counts = learnt_texts("last")
    assert texts == [f"{think}It goes on."] * 2
    assert counts["answers_not_learnt"] == {"template_rewrites_history": 1, "weight_0": 1}
    texts, counts = learnt_texts("each", each_answer=True)
    assert texts == [f"{think}It goes on.", f"{think}It goes on.", f"{think}It is so."]
    assert counts["answers_not_learnt"] == {"weight_0": 1}
    assert counts["conversations"] == 3


def test_where_nothing_is_left_the_advice_fits_the_reason(run_stage: Run, shelf: Path, put: Callable):
    families.tokenizer(families.MISTRAL).save_pretrained(shelf / "base" / "tokenizer")
    talk = Conversation("a", "made", (Message("system", "Be brief."), Message("user", "Why?"), Message("assistant", "It is so.")))
    with pytest.raises(UserError, match=r"1 template_refuses_conversation\. The chat template refuses") as caught:
        run_stage("pack", "none", {"max_length": ROW}, {"tokenizer": shelf / "base", "data": put("data", [talk])})
    assert "max_length," not in str(caught.value)
