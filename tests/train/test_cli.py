"""The command line: what `--help` says without importing a command, what it costs, and how a name is completed.

Covers: train/commands/options, train/commands/plan, train/commands/sources, train/display/plan.
"""

import os
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rounds.train import cli

BIN = Path(sys.executable).with_name("rounds")


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli.app, [*arguments])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_says_of_itself_what_the_list_of_commands_says_of_it(name):
    found = cli.load(name).help
    assert " ".join(found.split("\n\n")[0].split()) == cli.COMMANDS[name]


def test_every_file_of_commands_is_a_command_or_shared_by_several():
    files = {path.stem for path in Path(cli.__file__).with_name("commands").glob("*.py")}
    assert files - set(cli.COMMANDS) == {"__init__", "jobs", "options"}


def test_help_imports_no_command_and_planning_no_arrays():
    code = "import sys; from rounds.train.cli import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"

    def modules(*arguments: str) -> set[str]:
        command = [sys.executable, "-P", "-c", code, *arguments]
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stderr.split())

    assert not [name for name in modules("--help") if name.startswith("rounds.train.commands")]
    assert modules("plan", "quickstart").isdisjoint({"torch", "numpy", "pyarrow", "datasets", "transformers"})


def test_help_starts_fast():
    def seconds(*command: str | Path) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    nothing = min(seconds(sys.executable, "-c", "pass") for _ in range(3))
    # 0.22 on a quiet machine; processor time doubles where two processes share a core's caches, as in CI.
    assert min(seconds(BIN, "--help") for _ in range(3)) - nothing < 0.6


@pytest.mark.parametrize("arguments", [["-h"], ["plan", "-h"], ["data", "-h"], ["data", "preview", "-h"]])
def test_h_is_help(arguments):
    assert run(*arguments) == run(*arguments[:-1], "--help")


def test_the_version_is_that_of_the_package():
    assert run("--version") == f"rounds {version('rounds')}\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [("rounds st", {"status"}), ("rounds data ", {"build", "preview", "stats"}), ("rounds plan --k", {"--keys"})],
)
def test_a_shell_completes_commands_and_options(line, expected):
    words = line.split(" ")
    environment = {
        **os.environ,
        "_ROUNDS_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run([BIN], env=environment, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected


def test_an_unknown_command_is_told_with_the_nearest():
    done = CliRunner().invoke(cli.app, ["plam"])
    assert done.exit_code == 2 and "plan" in done.output
