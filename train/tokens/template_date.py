"""A date of its own for a chat template that writes today's: Llama 3.1's and gpt-oss's do, and would write other tokens tomorrow.

In: a template and a date. Out: the template with a macro before it that takes the place of transformers' `strftime_now`. So every stage,
and whoever uses the exported model, gets the text that the model was trained on.
"""

import datetime

from transformers import PreTrainedTokenizerBase

_NAME = "strftime_now"
_DIRECTIVES = "aAwdbBmyYHIpMSfzZjUWcxXGuVeDFT"


def pin(tokenizer: PreTrainedTokenizerBase, date: str) -> bool:
    """Pin the date (YYYY-MM-DD) of a tokenizer's templates; tells whether any writes one."""
    own = tokenizer.chat_template
    if isinstance(own, dict):
        tokenizer.chat_template = {name: pinned(each, date) for name, each in own.items()}
    elif own:
        tokenizer.chat_template = pinned(own, date)
    return tokenizer.chat_template != own


def pinned(template: str, date: str) -> str:
    """Return the template with its date pinned, or as it is where it writes none, or has been pinned before.

    The line end after the macro is eaten by `trim_blocks`, with which transformers reads templates: nothing else of the text changes.
    """
    if _NAME not in template or template.startswith(_head()):
        return template
    day = datetime.datetime.fromisoformat(date)
    said = {f"%{letter}": day.strftime(f"%{letter}") for letter in _DIRECTIVES}
    said |= {f"%-{letter}": said[f"%{letter}"].lstrip("0") or "0" for letter in "dmyHIMSjUWV"}
    replaced = "".join(f" | replace({directive!r}, {text!r})" for directive, text in said.items())
    return f"{_head()}{{{{- format{replaced} -}}}}{{%- endmacro %}}\n{template}"


def _head() -> str:
    return f"{{%- macro {_NAME}(format) -%}}"
