"""The project's own Jinja templates: text in which a name that is not given is an error, never an empty place."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def environment(folder: Path, html: bool = False) -> Environment:
    """Return what fills the templates of a folder; in `html` what is filled in is escaped."""
    return Environment(loader=FileSystemLoader(folder), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=html)
