"""An exported folder that older software opens as this one does: serving stacks and converters that read transformers 4's spelling.

transformers 5 writes `rope_parameters`, `dtype`, a tokenizer class and a list of extra tokens that 4.57 does not know: a base of
rotary embedding other than 10,000 would be lost there without a word. Both spellings stand in what is written here. Each file is then
opened again: where this transformers would read the second spelling as something else, the file stays as it was.
"""

import json
import logging
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_NOT_SCALING = ("rope_theta", "partial_rotary_factor")
_OF_THIS_MACHINE = ("is_local", "local_files_only", "backend")
_TEXT = "Take 5 mg (0.1 mg/kg).\n\n  Übelkeit, 37,5 °C"
"""Digits, punctuation, white space and letters beyond ASCII, by which two tokenizers are compared."""


def make(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add transformers 4's spelling to the config and the tokenizer's config of a folder; `tokenizer` is what it must open as."""
    _rewrite(folder / "config.json", _config, lambda: _meaning(folder))
    _rewrite(folder / "tokenizer_config.json", lambda plain: _tokenizer(plain, tokenizer), lambda: _tokens(folder))


def _rewrite(file: Path, change: Any, meaning: Any) -> None:
    before, text = meaning(), file.read_text(encoding="utf-8")
    file.write_text(json.dumps(change(json.loads(text)), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    try:
        same = meaning() == before
    except Exception as error:  # whatever a config's own code makes of a field that it does not expect
        logger.warning("%s: %s", file.name, error)
        same = False
    if not same:
        file.write_text(text, encoding="utf-8")
        logger.warning(
            "%s stays in transformers 5's spelling alone: with transformers 4's beside it, it would be read otherwise", file.name
        )


def _config(plain: dict[str, Any]) -> dict[str, Any]:
    """Add `rope_theta`, `rope_scaling` and `torch_dtype`, in the configs inside as well."""
    found = {name: _config(value) if name.endswith("_config") and isinstance(value, dict) else value for name, value in plain.items()}
    if isinstance(plain.get("dtype"), str):
        found["torch_dtype"] = plain["dtype"]
    rope = plain.get("rope_parameters")
    if not isinstance(rope, dict):
        return found
    layers = {name: value for name, value in rope.items() if isinstance(value, dict)}
    if not layers:
        return found | _rope(rope)
    # Two kinds of layers, each with its own: Gemma 3's names for them.
    found |= _rope(layers["full_attention"]) if "full_attention" in layers else {}
    sliding = layers.get("sliding_attention", {})
    return found | ({"rope_local_base_freq": sliding["rope_theta"]} if "rope_theta" in sliding else {})


def _rope(rope: dict[str, Any]) -> dict[str, Any]:
    scaling = {name: value for name, value in rope.items() if name not in _NOT_SCALING}
    plain = {name: rope[name] for name in _NOT_SCALING if name in rope}
    return {**plain, "rope_scaling": None if scaling.get("rope_type", "default") == "default" and len(scaling) < 2 else scaling}


def _tokenizer(plain: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Name the class that both know, write a list of extra tokens under the name that both read, and put the chat template in."""
    found = {name: value for name, value in plain.items() if name not in _OF_THIS_MACHINE}
    if found.get("tokenizer_class") == "TokenizersBackend":
        found["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(found.get("extra_special_tokens"), list):
        found["additional_special_tokens"] = found.pop("extra_special_tokens")
    if isinstance(tokenizer.chat_template, str):
        found["chat_template"] = tokenizer.chat_template
    return found


def _meaning(folder: Path) -> Any:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return [getattr(each, "rope_parameters", None) for each in (config, config.get_text_config())], config.dtype


def _tokens(folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    special = "".join(tokenizer.all_special_tokens)
    told = [getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template", "padding_side")]
    return told, sorted(tokenizer.all_special_tokens), tokenizer(_TEXT + special)["input_ids"], len(tokenizer)
