"""`rounds init`: a recipe of one's own to start from."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from jinja2 import Environment, PackageLoader, StrictUndefined

from rounds.data_prep import columns
from rounds.data_prep.columns import Layout
from rounds.data_prep.errors import UserError
from rounds.data_prep.filters import phi
from rounds.train.commands import options
from rounds.train.commands.options import told
from rounds.train.engine import digests

_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}"
_PLAIN = re.compile(r"[A-Za-z_./][\w./-]*")
"""What YAML reads as a text without quotes; `yes`, `no`, `null` and their like are quoted too."""
_WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null", "~")


@told
def init(
    name: Annotated[str, typer.Argument(help="Name of the recipe and of its file")] = "my-run",
    data: Annotated[Path | None, typer.Option("--data", metavar="FILE", help="Your rows: JSONL, JSON, CSV, TSV or parquet")] = None,
) -> None:
    """Write a commented recipe of your own, ready to plan and to run; with --data its source and columns are filled in.

    It is written into the current folder, never over a file. As it stands it trains a small model on a CPU in minutes; the
    comments say what to change for a real one. Questions with answers, conversations, and pairs of a chosen and a rejected
    answer are recognised by their columns.

        rounds init

        rounds init my-run --data rows.csv
    """
    name = name.removesuffix(".yaml")
    if not re.fullmatch(_NAME, name):
        raise UserError(f"{name!r} names no recipe: expected letters, digits, - and _, at most 60, such as my-run")
    file = Path(f"{name}.yaml")
    if data:
        digests.refuse_what_has_no_end(data)
    layout = columns.layout(data) if data else None
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(recipe(name, data, layout))
    except FileExistsError:
        raise UserError(f"{file} is there already and is left as it is; give another name: rounds init NAME") from None
    say = options.console
    if layout:
        read = "".join(f", {ours} is its column {theirs}" for ours, theirs in layout.columns.items())
        say.print(f"{data}: {layout.format}{read}", highlight=False, soft_wrap=True)
        if layout.unread:
            say.print(f"not read: {', '.join(layout.unread)}", style="yellow", highlight=False, soft_wrap=True)
    say.print(f"wrote {file}. Next: rounds plan {file}, then rounds run {file}", highlight=False, soft_wrap=True)


def recipe(name: str, data: Path | None, layout: Layout | None) -> str:
    """Return the text of a recipe for the rows of a file, or without one for the textbook facts that Rounds generates."""
    template = Environment(
        loader=PackageLoader("rounds.train", "commands"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template.filters["scalar"] = _scalar
    pairs, fraction = layout is not None and layout.format == "preference", layout.heldout_fraction if layout else 0.0
    return template.get_template("recipe.yaml.jinja").render(
        name=name,
        path=_relative(data) if data else None,
        layout=layout,
        pairs=pairs,
        fraction=fraction,
        masks=all(importlib.util.find_spec(module) for module in phi.MODULES),
    )


def _relative(data: Path) -> str:
    """Return the file as the recipe, in the current folder, is to name it."""
    whole = data.expanduser().resolve()
    return whole.relative_to(Path.cwd()).as_posix() if whole.is_relative_to(Path.cwd()) else str(whole)


def _scalar(value: Any) -> str:
    """Write a text as YAML reads it back."""
    text = str(value)
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return text if plain else json.dumps(text, ensure_ascii=False)
