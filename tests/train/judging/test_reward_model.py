"""A reward model gives an answer one score, whoever else is in the batch; what is no reward model is refused, and what it cannot read is
missing. On a tiny real Llama with a head of one label.

Covers: train/judging/opening.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Message
from rounds.train.config.cluster import Machine
from rounds.train.config.judging import RewardModel
from rounds.train.generation.samples import Sample
from rounds.train.judging import reward_model
from tests.train.conftest import ASKED, FACTS
from tests.train.judging.answers import sample

JUDGE = RewardModel(kind="reward_model", path="judge")


@pytest.fixture(scope="module")
def folder(made_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama that scores: random, with weights large enough for scores to differ."""
    where = tmp_path_factory.mktemp("judge") / "model"
    torch.manual_seed(3)
    config = AutoConfig.from_pretrained(made_base / "model", num_labels=1)
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(where)
    AutoTokenizer.from_pretrained(made_base / "tokenizer").save_pretrained(where)
    return where


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def change(file: Path, **fields) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def opened(where: Path, batch_size: int = 4, **fields) -> reward_model.Opened:
    judge = RewardModel.model_validate(JUDGE.model_dump() | fields)
    return reward_model.opened(judge, str(where), Machine(device="cpu", threads=1, eval_batch_size=batch_size))


def asked() -> list[tuple[tuple[Message, ...], Sample]]:
    rows = []
    for number, (drug, acts) in enumerate(FACTS * 2):
        prompt = (Message("user", ASKED[number % 4].format(drug)),)
        if number % 3 == 0:
            prompt = (Message("system", "Be brief."), *prompt, Message("assistant", "What?"), Message("user", "That."))
        rows.append((prompt, sample(number % 3, f"It {acts}. " * (1 + number % 5), prompt_id=f"p{number}")))
    return rows


def values(found) -> list[float]:
    assert all(each.score is not None for each in found), found
    return [each.score for each in found]


def test_an_answer_has_one_score_in_any_batch_and_order_and_with_either_padding(folder: Path, copied: Path):
    rows = asked()
    alone = values(reward_model.score(opened(folder, 1), rows))
    assert max(alone) - min(alone) > 0.05, "a judge without opinions shows nothing"
    for size in (3, 16):
        assert values(reward_model.score(opened(folder, size), rows)) == pytest.approx(alone, abs=1e-4)
    assert values(reward_model.score(opened(folder, 5), rows[::-1]))[::-1] == pytest.approx(alone, abs=1e-4)
    for side in ("left", "right"):
        change(copied / "tokenizer_config.json", padding_side=side)
        judge = opened(copied, 16)
        assert values(reward_model.score(judge, rows)) == pytest.approx(alone, abs=1e-4)
        texts = [str(judge.tokenizer.apply_chat_template(as_dicts(prompt, each), tokenize=False)) for prompt, each in rows]
        batch = judge.tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")  # as transformers itself would
        assert judge.tokenizer.padding_side == side
        with torch.no_grad():
            scored = judge.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert scored.flatten().tolist() == pytest.approx(alone, abs=1e-4)


def as_dicts(prompt, answered: Sample) -> list[dict[str, str]]:
    return [*({"role": turn.role, "content": turn.content} for turn in prompt), {"role": "assistant", "content": answered.answer}]


def test_a_model_whose_config_names_no_padding_is_scored_at_its_last_token(folder: Path, copied: Path):
    change(copied / "config.json", pad_token_id=None)
    assert opened(copied).model.config.pad_token_id is None
    expected = values(reward_model.score(opened(folder, 1), asked()))
    for size in (1, 16):
        assert values(reward_model.score(opened(copied, size), asked())) == pytest.approx(expected, abs=1e-4)


def test_scores_are_those_of_the_prompts_and_answers_given(folder: Path):
    rows = asked()
    found = reward_model.score(opened(folder), rows)
    assert [(each.prompt_id, each.number) for each in found] == [(each.prompt_id, each.number) for _, each in rows]
    other = reward_model.score(opened(folder), [((Message("user", "Anything else?"),), each) for _, each in rows])
    assert not set(values(found)) & set(values(other)), "the prompt is read too"


def test_an_input_that_is_cut_is_scored_and_marked(folder: Path):
    rows = asked()
    judge = opened(folder, max_length=60)
    found = reward_model.score(judge, rows)
    lengths = [len(row) for row in reward_model._encoded(judge.tokenizer, rows)]
    assert [each.reason for each in found] == ["cut" if length > 60 else "" for length in lengths]
    assert 0 < sum(each.reason == "cut" for each in found) < len(rows)
    assert opened(folder, max_length=100_000).max_length == 256, "it has no more positions"


def test_what_cannot_be_shown_is_missing_with_its_reason(folder: Path, copied: Path):
    (prompt, answer), *rest = asked()
    marked = replace(answer, answer="Well <|eot_id|> good")
    found = reward_model.score(opened(folder), [(prompt, marked), *rest])
    assert found[0].score is None and found[0].reason == "control_token_in_text"
    assert values(found[1:]) == pytest.approx(values(reward_model.score(opened(folder), rest)), abs=1e-4)
    for template, reason in (
        ("{{ raise_exception('no') }}", "template_refuses_conversation"),
        ("{{ messages[-1]['content'] }}<|eot_id|>", "template_loses_content"),
    ):
        (copied / "chat_template.jinja").write_text(template)
        assert {(each.score, each.reason) for each in reward_model.score(opened(copied), asked())} == {(None, reason)}


def test_a_number_that_is_not_finite_is_missing(copied: Path):
    weights = load_file(copied / "model.safetensors")
    weights["score.weight"] = torch.full_like(weights["score.weight"], torch.nan)
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    assert {(each.score, each.reason) for each in reward_model.score(opened(copied), asked())} == {(None, "not_finite")}


def test_what_is_no_reward_model_is_refused(folder: Path, copied: Path, made_base: Path, tmp_path: Path):
    weights = load_file(folder / "model.safetensors")
    headless = {name: tensor for name, tensor in weights.items() if name != "score.weight"}
    save_file(headless, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 of its weights are not in its files, such as score.weight: its verdicts would be random"):
        opened(copied)
    save_file(headless | {"score.weight": torch.zeros(3, 32)}, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"another size than its config.json says, such as score.weight"):
        opened(copied)
    (copied / "model.safetensors").unlink()
    torch.save(weights, copied / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be opened as safetensors"):
        opened(copied)
    with pytest.raises(UserError, match=r"has one label, and its config.json says 2"):
        opened(made_base / "model")
    with pytest.raises(UserError, match=r"its config.json cannot be used"):
        opened(tmp_path / "nowhere")
    change(copied / "config.json", auto_map={"AutoConfig": "own.Config"}, model_type="own")
    with pytest.raises(UserError, match="without running code that came with it"):
        opened(copied)


def test_a_judge_without_a_chat_template_or_a_tokenizer_is_refused(copied: Path):
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template, so how it was shown answers is not known"):
        opened(copied)
    for file in copied.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="its tokenizer cannot be loaded"):
        opened(copied)
