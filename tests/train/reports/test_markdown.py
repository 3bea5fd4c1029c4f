"""What rows and recipes say stands in a card as text."""

import pytest
from markupsafe import Markup

from rounds.train.reports import markdown


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("med42_v2 of 2024-08, 99 % (3 of 4)!", "med42_v2 of 2024-08, 99 % (3 of 4)!"),
        ("-", "-"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
        ("[safe](https://elsewhere.example)", r"\[safe\](https://elsewhere.example)"),
        ("**bold** _low_ ~~gone~~ `code`", r"\*\*bold\*\* \_low\_ \~\~gone\~\~ \`code\`"),
        ("one | two\n| three", r"one \| two \| three"),
        ("# heading", r"\# heading"),
        ("text\n\n# heading", "text # heading"),
        ("- item", r"\- item"),
        ("---", r"\---"),
        ("1. item", r"1\. item"),
        ("C:\\rows", r"C:\\rows"),
        (7, 7),
        (Markup("**ours**"), Markup("**ours**")),
    ],
)
def test_a_text_is_shown_as_it_is(said: object, written: object):
    assert markdown.plain(said) == written
