"""Every page: what it names is there, its links lead somewhere, its commands are ones that `rounds` has, and the cheap ones are run."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from rounds.data_prep import filters
from rounds.train import cli
from rounds.train.config import ablation, recipe
from rounds.train.engine import kinds

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("train", "data_prep", "recipes", "scripts", "tests")
FILES = sorted(
    str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.*"), *(path for each in FOLDERS for path in (ROOT / each).rglob("*.*")))
)
PAGES = [name for name in FILES if name.endswith(".md") and "/prompts/" not in name]
"""All pages; a system prompt is none."""
PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]*")
MODULE = re.compile(r"(?<![\w./-])(?:rounds\.(?:train|data_prep)|tests)(?:\.\w+)+(?::\w+)?")
FILE_NAME = re.compile(r"(?<![\w./*-])[\w-]+\.(?:py|jinja|md|toml)(?![\w/])")
LINK = re.compile(r"\]\(([^)\s]+)\)")
EXAMPLES = {"my.yaml": "slurm"}
"""Cluster files of the reader's own, and the shipped one that stands for each."""
ELSEWHERE = {"train.py", "DATA_CARD.md"}
"""What a page says of a reader's folder, or of a store."""


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> str:
    """Return a page's code blocks: fenced, or indented after an empty line."""
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL))
    indented = [line for line in text(page).splitlines() if line.startswith("    ")]
    return "\n".join([fenced, *indented])


def code(page: str) -> str:
    """Return all of a page that is set as code."""
    return blocks(page) + "\n" + "\n".join(re.findall(r"`([^`\n]+)`", text(page)))


def there(path: str) -> bool:
    """Tell whether a path, or a pattern, leads to a file or folder of the repository."""
    return any(ROOT.glob(path)) if "*" in path else (ROOT / path).exists()


@pytest.mark.parametrize("page", PAGES)
def test_every_path_of_the_repository_is_there(page: str) -> None:
    paths = {found.rstrip("./") for found in PATH.findall(code(page))}
    assert [path for path in sorted(paths) if not there(path)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_alone_is_there(page: str) -> None:
    known = {Path(name).name for name in FILES} | ELSEWHERE
    assert sorted(set(FILE_NAME.findall(code(page))) - known) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_module_is_there(page: str) -> None:
    assert [name for name in MODULE.findall(text(page)) if not _is_module(name)] == []


def _is_module(name: str) -> bool:
    """Tell whether a dotted name is a module or a name in one. Nothing is imported: some modules take seconds."""
    module, _, inside = name.removeprefix("rounds.").partition(":")
    parts = module.split(".")
    for end, rest in ((len(parts), []), (len(parts) - 1, parts[-1:])):
        file = ROOT.joinpath(*parts[:end])
        source = file.with_suffix(".py") if file.with_suffix(".py").is_file() else file / "__init__.py"
        if source.is_file():
            names = [*rest, *([inside] if inside else [])]
            return all(re.search(rf"^(def|class) {each}\b|^{each}\b.*=", source.read_text(), re.MULTILINE) for each in names)
    return False


def test_every_module_that_the_code_tells_of_is_there() -> None:
    told = {
        (name, found.rstrip("."))
        for name in FILES
        if name.endswith(".py")
        for found in re.findall(r"`(rounds\.(?:train|data_prep)\.[\w.:]+)`", text(name))
    }
    assert [(name, module) for name, module in sorted(told) if not _is_module(module)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    links = [link.partition("#")[0] for link in LINK.findall(text(page)) if "://" not in link]
    assert [link for link in links if link and not ((ROOT / page).parent / link).exists()] == []


def commands(page: str) -> Iterator[list[str]]:
    """Yield the words of every `rounds` command in a page's blocks, and of those in its lines that have arguments."""
    inline = re.findall(r"`(rounds [^`\n]+)`", text(page))
    for line in [*blocks(page).splitlines(), *inline]:
        if re.match(r"\s*(\.venv/bin/)?rounds\s", line) and "rounds/" not in line.split("#")[0].split()[0]:
            yield shlex.split(line, comments=True)[1:]


ALL = sorted({(page, *words) for page in PAGES for words in commands(page)})


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_parses(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name, its options and what they want are those of `rounds`; a RECIPE or a FILE is any."""
    monkeypatch.chdir(ROOT)
    given = [_stand_in(word) for word in words[1:]]
    if given[0] == "COMMAND" or given[0].startswith("--"):
        assert given[0] == "COMMAND" or given[0] in _options(click_app())
        return
    assert given[0] in cli.COMMANDS
    command: Any = cli.load(given[0])
    arguments = given[1:]
    if len(arguments) == 0 or {"-h", "--help"} & set(arguments):
        return  # named, not called
    if hasattr(command, "commands") and not arguments[0].startswith("-"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(words[1], list(arguments))  # raises click's UsageError, and typer's Exit for a file that is not there


def _stand_in(word: str) -> str:
    """Return something of the kind that a page's word in capitals stands for."""
    return EXAMPLES.get(word) or {"RECIPE": "quickstart", "FILE": "slurm", "STAGE": "sft"}.get(word) or word


def click_app() -> Any:
    """Return the command line with all its own options."""
    return typer.main.get_command(cli.app)


def _options(command: Any) -> set[str]:
    return {name for each in command.get_params(click.Context(command)) for name in each.opts}


def cheap(words: tuple[str, ...]) -> bool:
    """Tell whether a command only reads, and is no example with words in capitals; with a cluster file planning imports torch."""
    command = words[0]
    plans = command == "plan" and len(words) > 1 and "--cluster" not in words
    return (plans or command == "sources") and not {"RECIPE", "FILE"} & set(words)


CHEAP = [words for words in sorted({words[1:] for words in ALL}) if cheap(words)]


@pytest.mark.parametrize("words", CHEAP, ids=" ".join)
def test_what_runs_nothing_is_run(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    store = [] if words[0] == "sources" else ["--store", str(tmp_path)]
    done = CliRunner().invoke(cli.app, [*words, *store])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("page", PAGES)
def test_options_of_scripts_are_there(page: str) -> None:
    """The text of a script names every option that a page gives it."""
    for line in code(page).splitlines():
        called = re.match(r"\s*(scripts/[\w-]+)\s+(.*)", line.split("#")[0])
        if called and called[1] != "scripts/test":  # whose options are pytest's too
            script = (ROOT / called[1]).read_text()
            wanted = [word for word in called[2].split() if word.startswith("--")]
            assert [word for word in wanted if f'"{word}"' not in script] == [], line


def yaml_blocks(page: str) -> list[dict]:
    found = re.findall(r"^```yaml\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL)
    return [yaml.safe_load(block.replace("<40-digit commit>", "a" * 40)) for block in found]


@pytest.mark.parametrize("page", ["README.md", "recipes/README.md"])
def test_the_recipe_on_the_page_is_one(page: str) -> None:
    (block,) = yaml_blocks(page)
    made = recipe.Recipe.model_validate(block)
    for use in made.filters:
        filters.settings(use)


def test_the_ablation_on_the_page_is_one() -> None:
    (block,) = yaml_blocks("recipes/ablations/README.md")
    ablation.Ablation.model_validate(block)


def test_the_readme_is_short() -> None:
    assert len(text("README.md").splitlines()) <= 120


def test_every_page_is_reached_from_the_readme() -> None:
    reached, ahead = set(), ["README.md"]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        ahead += [name for name in PAGES if f"`{name}`" in text(page) and name not in reached]
    assert reached == set(PAGES)


def test_the_rooms_are_those_that_there_are() -> None:
    rooms = {path.name for path in (ROOT / "train").iterdir() if (path / "__init__.py").is_file()}
    assert set(re.findall(r"^\|.*?`train/(\w+)/` \|", text("train/README.md"), re.MULTILINE)) == rooms


def test_the_filters_are_those_that_there_are() -> None:
    table = text("data_prep/README.md").split("| filter | drops |")[1].split("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(filters.names())


WALK = {
    "train/config/training.py": ("class Round", "class DpoLoss"),
    "train/commands/run.py": ("def run", "plan_of("),
    "train/commands/options.py": ("def plan_of",),
    "train/plan/pipeline.py": ("def build_plan", "def _dpo", "params.DpoParams("),
    "train/engine/params.py": ("class DpoParams",),
    "train/engine/graph.py": ("class Stage", "def key"),
    "train/launch/local.py": ("def run",),
    "train/engine/worker.py": ("def run", "def _compute", "code_of(spec.kind)("),
    "train/engine/kinds.py": ("DPO = ",),
    "train/stages/dpo.py": (
        "def _with_reference",
        "DPOConfig(",
        "class StoredReferenceTrainer",
        "super()._compute_loss(",
    ),
    "train/training/trainer.py": ("class StageTrainer",),
    "train/tokens/packed_pairs.py": ("class PairCollator",),
    "train/training/train.py": ("trainer.train(", "def _save"),
    "train/weights/packed_attention.py": ("def forward",),
}
"""What the walk in train/README.md says of each file."""


def test_the_walk_to_the_loss_is_true() -> None:
    walk = text("train/README.md").split("## From a recipe to the line of the DPO loss")[1].split("\n## ")[0]
    for file, said in WALK.items():
        assert f"`{file}`" in walk
        source = (ROOT / file).read_text()
        assert [each for each in said if each not in source] == [], file


def test_the_code_of_a_round_is_where_the_walk_says() -> None:
    assert f"`{kinds.DPO.code}`" in text("train/README.md")


def test_the_line_of_the_loss_is_trls() -> None:
    (line,) = re.findall(r"`(per_sequence_loss[^`]+)`", text("train/README.md"))
    trl = importlib.util.find_spec("trl")
    assert trl and trl.origin
    source = (Path(trl.origin).parent / "trainer" / "dpo_trainer.py").read_text()
    after = source.split('if loss_type == "sigmoid":')[1].strip()
    assert after.startswith(line)
    assert "def _compute_loss" in source


def test_no_page_says_that_a_model_is_fit_for_the_clinic() -> None:
    assert "not for clinical use" in text("README.md")
    assert [page for page in PAGES if re.search(r"(safe|ready|fit|suitable) for (the )?(clinic|patient)", text(page))] == []
