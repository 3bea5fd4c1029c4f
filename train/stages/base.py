"""Stage `base`: the model that the run starts from, with the tokenizer and chat template that every stage uses.

In: `corpus` (kind tiny: the instruction set) or `model` (kind local: the user's folder), or nothing (kind hub).
Out: `tokenizer/`, `policy.json`, and for a tiny model its random weights in `model/`.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rounds.data_prep import hub, records
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import RECORDS
from rounds.train.config.cluster import Machine
from rounds.train.config.recipe import Start, StartHub, StartTiny
from rounds.train.engine import policy
from rounds.train.engine.params import BaseParams
from rounds.train.engine.records import Counts
from rounds.train.tokens import chat, template_date
from rounds.train.weights import models

logger = logging.getLogger(__name__)

_CONTROL_TOKENS = ["<|begin_of_text|>", "<|pad|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def run(params: BaseParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Make, find or fetch the starting model, and check that its chat template can be trained with."""
    if isinstance(params.base, StartTiny):
        return _tiny(params.base, params, inputs["corpus"] / RECORDS, out)
    where = str(inputs["model"]) if "model" in inputs else _fetch(params.base)
    model, tokenizer = models.open_folder(where)
    limits = _finish_tokenizer(tokenizer, params, out)
    embedded: Any = model.get_input_embeddings()
    _check_tokens(tokenizer, embedded.num_embeddings, where)
    from_hub = params.base if isinstance(params.base, StartHub) else None
    models.check_finite(
        Path(where), f"{where}: {{name}} holds values that are no finite numbers: the weights are damaged; fetch them again"
    )
    policy.write_base(out, from_hub.id if from_hub else None, from_hub.revision if from_hub else None)
    return {"model_type": model.config.model_type, "vocabulary": len(tokenizer), **models.count_parameters(model), **limits}


def _check_tokens(tokenizer: PreTrainedTokenizerBase, rows: int, where: str) -> None:
    """Refuse a tokenizer that writes tokens for which the model has no embedding, such as a chat template's that were added without
    one. Special tokens that no template writes may be beyond: Gemma 3's text models have one for images."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    named: list[Any] = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    written = {*named, *tokenizer(text, add_special_tokens=False).input_ids}
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    wanted = [token for token, number in beyond.items() if number in written or number not in special]
    if wanted:
        raise UserError(
            f"{where}: the model has embeddings for {rows} tokens, and the tokenizer writes others too, such as {min(wanted)!r}: take a "
            "chat template that the model knows, or resize its embeddings (resize_token_embeddings) and save it again"
        )


def _fetch(base: Start) -> str:
    assert isinstance(base, StartHub)
    return str(hub.download(base.id, base.revision, policy.MODEL_FILES, "model"))


def _tiny(base: StartTiny, params: BaseParams, corpus: Path, out: Path) -> Counts:
    inner = Tokenizer(BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        _texts(corpus),
        trainers.BpeTrainer(
            vocab_size=base.vocab_size,
            special_tokens=_CONTROL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=_CONTROL_TOKENS[0],
        pad_token=_CONTROL_TOKENS[1],
        eos_token=_CONTROL_TOKENS[4],
        additional_special_tokens=_CONTROL_TOKENS[2:4],
        model_max_length=base.max_position_embeddings,
    )
    limits = _finish_tokenizer(tokenizer, params, out)
    torch.manual_seed(params.seed or 0)
    shape = base.model_dump(exclude={"kind", "vocab_size", "template_date"})
    model = LlamaForCausalLM(
        LlamaConfig(
            **shape,
            num_key_value_heads=base.num_attention_heads,
            vocab_size=len(tokenizer),
            **{name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        )
    )
    model.save_pretrained(out / "model")
    policy.write_base(out, "model", None)
    return {"model_type": "llama", "vocabulary": len(tokenizer), **models.count_parameters(model), **limits}


def _texts(corpus: Path) -> Iterator[str]:
    for record in records.read_records(corpus):
        yield from (message.content for message in records.prompt_of(record))
        yield from records.answers_of(record)


def _finish_tokenizer(tokenizer: PreTrainedTokenizerBase, params: BaseParams, out: Path) -> Counts:
    """Set the template, make its end-of-turn token the one EOS, see to a pad token, check and save; return what it does not write."""
    if params.chat_template is not None:
        tokenizer.chat_template = params.chat_template
    is_dated = template_date.pin(tokenizer, params.base.template_date)
    stop = chat.check_template(tokenizer)
    if tokenizer.eos_token != stop:
        logger.info("eos token %s -> %s, which ends the template's turns", tokenizer.eos_token, stop)
        tokenizer.eos_token = stop
    if tokenizer.pad_token is None:
        spare = [token for token in tokenizer.all_special_tokens if "pad" in token or "reserved" in token]
        tokenizer.pad_token = spare[-1] if spare else tokenizer.eos_token
        logger.info("no pad token; using %s. Training masks padding by position, never by token", tokenizer.pad_token)
    tokenizer.save_pretrained(out / "tokenizer")
    limits = chat.template_limits(tokenizer)
    for what, problem in limits.items():
        logger.warning("the chat template: %s are %s", what, problem)
    dated: Counts = {"template_date": params.base.template_date} if is_dated else {}
    if is_dated:
        logger.info("the chat template writes today's date: pinned to %s (base.template_date)", params.base.template_date)
    return {**dated, **({"chat_template": limits} if limits else {})}
