"""A template that writes today's date writes the recipe's, and otherwise what it wrote."""

import datetime
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from rounds.train.config.recipe import StartTiny
from rounds.train.tokens import template_date
from tests.train.tokens import families

LLAMA31 = """{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "unknown" %}
    {%- endif %}
{%- endif %}
{{- "<s>Today: " + date_string + "\\n" }}
"""
GPT_OSS = """{%- macro head() %}{{- "Current date: " + strftime_now("%Y-%m-%d") + "\\n" }}{%- endmacro %}{{ head() }}"""
PADDED = '\n   {% if true %}\n  On {{ strftime_now("%A, %-d %B %Y, %H:%M, day %j, %d/%m/%y") }}.\n   {% endif %}\n'
TURNS = [{"role": "user", "content": "Hot?"}, {"role": "assistant", "content": "Yes."}]


class Frozen(datetime.datetime):
    """A clock that stands at the start of a day."""

    is_on = datetime.datetime(2024, 7, 6)

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.is_on


@pytest.mark.parametrize("head", [LLAMA31, GPT_OSS, PADDED], ids=["llama31", "gpt_oss", "white space"])
def test_a_pinned_template_writes_what_it_would_have_written_on_that_day(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template_utils, "datetime", Frozen)
    using = families.tokenizer(head + families.CHATML)
    on_the_day = using.apply_chat_template(TURNS, tokenize=False)
    assert "2024" in str(on_the_day)
    using.chat_template = template_date.pinned(str(using.chat_template), "2024-07-06")
    monkeypatch.setattr(Frozen, "is_on", datetime.datetime(2031, 1, 2, 3, 4))
    assert using.apply_chat_template(TURNS, tokenize=False) == on_the_day
    assert not template_date.pin(using, "2025-01-01")  # once is enough
    assert using.apply_chat_template(TURNS, tokenize=False) == on_the_day


def test_a_template_without_a_date_stays_as_it_is() -> None:
    using = families.tokenizer(families.CHATML)
    assert not template_date.pin(using, "2024-07-06")
    assert using.chat_template == families.CHATML


def test_the_date_is_in_the_key_where_it_is_not_the_default() -> None:
    def stored(**fields: Any) -> dict[str, Any]:
        return StartTiny.model_validate({"kind": "tiny", **fields}).stored()

    assert stored() == stored(template_date=datetime.date(2024, 7, 26))
    assert stored(template_date="2026-01-05")["template_date"] == "2026-01-05"
    for wrong in ("2026-02-30", "today", "5 Jan 2026", 20260105):
        with pytest.raises(ValueError, match="template_date"):
            stored(template_date=wrong)
