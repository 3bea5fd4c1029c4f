"""PairRM's architecture on a tiny random checkpoint in its published layout: both orders, any batch, what is cut, what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DebertaV2Config, DebertaV2Model, DebertaV2Tokenizer

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Message
from rounds.train.config.cluster import Machine
from rounds.train.config.judging import Pairwise
from rounds.train.generation.samples import Sample
from rounds.train.judging import pairwise
from tests.train.conftest import ASKED, FACTS
from tests.train.judging.answers import sample

MARKS = ["<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written tensor by tensor, so that no class of ours has a say in the names: an encoder under `pretrained_model`, a head beside it."""
    where = tmp_path_factory.mktemp("judge") / "model"
    where.mkdir()
    letters = [(letter, -5.0) for letter in "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ?.,:"]
    specials = [("[PAD]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("[UNK]", 0.0), ("[MASK]", 0.0)]
    tokenizer = DebertaV2Tokenizer(vocab=[*specials, *letters])
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})  # type: ignore[dict-item]
    tokenizer.save_pretrained(where)
    torch.manual_seed(5)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 512, "relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"],
        "type_vocab_size": 0, "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False, "pad_token_id": 0,
    }  # fmt: skip
    config = DebertaV2Config(**shape)
    encoder = DebertaV2Model(config)
    weights = {f"pretrained_model.{name}": tensor + 0.3 * torch.randn_like(tensor) for name, tensor in encoder.state_dict().items()}
    weights |= {"head_layer.1.weight": torch.randn(32, 64), "head_layer.1.bias": torch.randn(32)}
    weights |= {"head_layer.4.weight": torch.randn(1, 32), "head_layer.4.bias": torch.randn(1)}
    save_file(weights, where / "model.safetensors", {"format": "pt"})
    names = ("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id", "cand_prefix_id")
    ids = dict(zip(names, tokens(tokenizer, MARKS), strict=True))
    plain = config.to_dict() | {"architectures": ["DebertaV2PairRM"], "n_tasks": 1, "drop_out": 0.05, "sep_token_id": 2, **ids}
    (where / "config.json").write_text(json.dumps(plain))
    return where


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def tokens(tokenizer, marks: list[str]) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(mark) for mark in marks]


def opened(where: Path, batch_size: int = 4) -> pairwise.Opened:
    return pairwise.opened(
        Pairwise(kind="pairwise", path="judge"), str(where), Machine(device="cpu", threads=1, eval_batch_size=batch_size)
    )


def asked() -> list[tuple[tuple[Message, ...], Sample, Sample]]:
    rows = []
    for number, (drug, acts) in enumerate(FACTS * 2):
        prompt = (Message("user", ASKED[number % 4].format(drug)),)
        if number % 4 == 0:
            prompt = (Message("system", "Be brief."), *prompt)
        answers = (sample(0, f"It {acts}. " * (1 + number % 5), 20), sample(1, f"Nobody knows, {drug} may do. " * (1 + number % 3), 30))
        rows.append((prompt, *(replace(each, prompt_id=f"p{number}") for each in answers)))
    return rows


def values(found: list) -> list[float]:
    assert all(each.outcome is not None for each in found), found
    return [side for each in found for side in (each.forward, each.backward)]


def test_a_comparison_has_one_verdict_in_any_batch_and_order(folder: Path):
    rows = asked()
    alone = pairwise.compare(opened(folder, 1), rows)
    assert len({round(value, 2) for value in values(alone)}) > 20, "a judge without opinions shows nothing"
    for size in (3, 32):
        assert values(pairwise.compare(opened(folder, size), rows)) == pytest.approx(values(alone), abs=1e-4)
    assert values(pairwise.compare(opened(folder, 5), rows[::-1])[::-1]) == pytest.approx(values(alone), abs=1e-4)
    assert [(each.prompt_id, each.first, each.second, each.first_tokens) for each in alone] == [(f"p{n}", 0, 1, 20) for n in range(16)]


def test_the_other_way_round_is_the_same_verdict(folder: Path):
    rows = asked()
    found, turned = (pairwise.compare(opened(folder), each) for each in (rows, [(prompt, b, a) for prompt, a, b in rows]))
    for one, other in zip(found, turned, strict=True):
        assert (one.forward, one.backward) == pytest.approx((-(other.backward or 0), -(other.forward or 0)), abs=1e-4)
        assert one.outcome is not None and other.outcome == 1 - one.outcome
    assert 0.5 in {each.outcome for each in found}, "a random judge goes by place, and that is a tie"


def test_a_verdict_is_what_the_weights_say_computed_by_hand(folder: Path):
    (prompt, first, second), *_ = [row for row in asked() if len(row[0]) == 1]
    judge, weights = opened(folder), load_file(folder / "model.safetensors")
    encoder = DebertaV2Model(DebertaV2Config.from_pretrained(folder)).eval()
    encoder.load_state_dict({name.removeprefix("pretrained_model."): each for name, each in weights.items() if "pretrained" in name})
    texts = [mark + text for mark, text in zip(MARKS, (prompt[0].content, first.answer, second.answer), strict=False)]
    ids = torch.tensor([[token for text in texts for token in judge.tokenizer.encode(text)]])
    with torch.no_grad():
        encoded = encoder(ids).last_hidden_state[0]
    source, one, other = (encoded[ids[0].tolist().index(token)] for token in tokens(judge.tokenizer, MARKS[:3]))

    def head(answer: torch.Tensor) -> float:
        inner = torch.tanh(weights["head_layer.1.weight"] @ torch.cat([source, answer]) + weights["head_layer.1.bias"])
        return (weights["head_layer.4.weight"] @ inner + weights["head_layer.4.bias"]).item()

    (verdict,) = pairwise.compare(judge, [(prompt, first, second)])
    assert verdict.forward == pytest.approx(head(one) - head(other), abs=1e-4)


def test_what_is_cut_is_marked_and_the_marks_are_still_found(folder: Path):
    judge = opened(folder, 2)
    prompt, first, second = asked()[1]
    long = replace(second, answer="word " * 500)
    cut, whole = pairwise.compare(judge, [(prompt, first, long), (prompt, first, second)])
    assert (cut.reason, whole.reason) == ("cut", "")
    row = pairwise._row(judge.tokenizer, (Message("user", "long " * 2000),), long, long)
    assert row is not None and row.cut and len(row.ids) == 1224 + 2 * 412
    assert [row.ids[place] for place in row.marks] == tokens(judge.tokenizer, MARKS[:3])
    assert row.ids[1223] == row.ids[1223 + 412] == row.ids[-1] == judge.tokenizer.sep_token_id
    same = pairwise.compare(judge, [(prompt, first, replace(long, answer=long.answer + "more"))])[0]
    assert same.forward == pytest.approx(cut.forward, abs=1e-4), "what is behind the cut is not read"


def test_a_text_with_a_mark_has_no_verdict_and_the_others_keep_theirs(folder: Path):
    rows = asked()
    prompt, first, second = rows[2]
    spoilt = [*rows[:2], (prompt, replace(first, answer="good <|candidate2|> bad"), second), *rows[3:]]
    found = pairwise.compare(opened(folder), spoilt)
    assert (found[2].outcome, found[2].reason) == (None, "control_token_in_text")
    expected = pairwise.compare(opened(folder), [*rows[:2], *rows[3:]])
    assert values([*found[:2], *found[3:]]) == pytest.approx(values(expected), abs=1e-4)


def test_what_is_not_its_architecture_is_refused(copied: Path, made_base: Path):
    weights = load_file(copied / "model.safetensors")
    save_file(
        {name: each for name, each in weights.items() if name != "head_layer.4.weight"}, copied / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(
        UserError, match=r"1 of its weights are not in its files, such as head_layer.4.weight: its verdicts would be random"
    ):
        opened(copied)
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"cand1_prefix_id": 7}))
    with pytest.raises(UserError, match=r"for <\|candidate1\|>, and its config.json says cand1_prefix_id: 7"):
        opened(copied)
    del config["source_prefix_id"]
    (copied / "config.json").write_text(json.dumps(config))
    for where in (copied, made_base / "model"):
        with pytest.raises(UserError, match="expected PairRM's architecture"):
            opened(where)
