"""Cards in Markdown: what rows and recipes say stands in them as text, whatever it is.

In: a template of this room. Out: its text. What a template fills in is escaped; `safe` lets pass what is Markdown already.
"""

import re
from typing import Any

from markupsafe import Markup

from rounds.train.engine import templates
from rounds.train.reports import pages

_MARKS = re.compile(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])")
"""What begins or ends something in a line; an underscore inside a word does not."""
_STARTS = re.compile(r"^(?=#{1,6}(?:\s|$)|[-+]\s|[-=]{3})|^\d+(?=[.)]\s)")
"""What makes a line a heading, an item or a rule: the place to put a backslash is at its end."""


def render(template: str, **values: Any) -> str:
    """Fill a template of this folder with Markdown in it. A name that it uses and that is not given is an error."""
    environment = templates.environment(pages.FOLDER)
    environment.finalize = plain
    return environment.get_template(template).render(**values)


def plain(value: Any) -> Any:
    """Write a text on one line, so that Markdown shows it as it is; what is no text, or `Markup`, is left alone."""
    if isinstance(value, Markup) or not isinstance(value, str | list | tuple | dict):
        return value
    whole = str(value)
    text = " ".join(whole.split())
    before, after = (" " if text and end.isspace() else "" for end in (whole[:1], whole[-1:]))  # as in a template's own ", "
    text = _MARKS.sub(lambda found: f"\\{found.group()}", text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    return before + _STARTS.sub(lambda found: f"{found.group()}\\", text) + after
