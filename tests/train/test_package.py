"""The wheel, installed outside of its checkout, at work in a folder full of files that are named like modules.

One wheel is built and one small recipe is run, from the data to the report, with SFT as two ranks of torchrun; what is executed
or read of the folder's own files leaves a trace there, and there must be none.

Covers: train/launch/quiet.
"""

import os
import shutil
import site
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("data_prep", "recipes", "train")
HOSTILE = (
    "train", "data_prep", "rounds", "recipes", "typing", "logging", "json", "yaml", "numpy", "torch", "wandb", "jinja2", "accelerate",
    "sitecustomize", "usercustomize",
)  # fmt: skip
TRAP = "open(__file__ + '.ran', 'w').close()\nraise SystemExit(__file__ + ' was executed')\n"
RECIPE = "extends: quickstart\nname: small\nsources: {facts: {max_rows: 40}}\n"
CLUSTER = "train: {processes: 2, micro_batch_size: 2, device: cpu, threads: 1}\ncpu: {threads: 1}\ninfer: {threads: 1}\n"
SRUN = '#!/bin/bash\nwhile [ "$1" != bash ]; do shift; done\nexec "$@"\n'

pytestmark = pytest.mark.xdist_group("package")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a copy of the checkout: a build leaves folders behind, whose stale files would be in the next wheel."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", out, copy], check=True, capture_output=True)
    return next(out.glob("rounds-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment with the wheel in it, which borrows all else from this one."""
    home = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        home / "bin" / "python",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*pip, wheel], check=True, capture_output=True)
    own = next((home / "lib").glob("python*/site-packages"))
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (own / "borrowed.pth").write_text("\n".join([*borrowed, *site.getsitepackages()]))
    return home / "bin"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A person's folder, with a recipe, rows, and everything in it that could be taken for something else."""
    folder = tmp_path_factory.mktemp("hostile")
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(TRAP)
    for name in ("recipes", "quickstart", "clusters", "deepspeed", "lm_eval", "clinic_facts", "tools"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(TRAP)
    (folder / "recipes" / "quickstart.txt").write_text("not the recipe")
    (folder / "pyproject.toml").write_text("no toml [")
    (folder / ".env").write_text("ROUNDS_STORE=/nowhere\n")
    (folder / "matplotlibrc").write_text("no.such.setting: 1\n")
    things = ("heart", "liver", "kidney", "spleen", "lung", "brain", "eye", "ear", "skin", "bone", "nerve", "blood")
    rows = [f"What does the {one} do to the {other}?,It serves the {other}." for one in things[:4] for other in things]
    (folder / "mine.csv").write_text("\n".join(["Instruction,Output", *rows]))
    (folder / "small.yaml").write_text(RECIPE)
    (folder / "two.yaml").write_text(CLUSTER)
    (folder / "jobs.yaml").write_text("kind: slurm\ntrain: {processes: 2, slurm: {time: '1:00:00'}}\n")
    for name in ("srun", "scontrol", "squeue"):  # what a job's script calls, where no SLURM is
        (folder / "tools" / name).write_text(SRUN if name == "srun" else "#!/bin/bash\n")
        (folder / "tools" / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def rounds(installed: Path, folder: Path):
    """Run the installed command in that folder; returns what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ROUNDS"))}

    def run(*arguments: str, command: str | Path = installed / "rounds", **more: str) -> str:
        environment = {**kept, "COLUMNS": "200", "PATH": f"{installed}:{os.environ['PATH']}", **more}
        done = subprocess.run([command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert not [path.name for path in folder.rglob("*.ran")]
        return done.stdout

    return run


def test_the_packages_are_all_folders_with_code():
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    code = {path.parent.relative_to(REPOSITORY) for name in FOLDERS for path in (REPOSITORY / name).rglob("*.py")}
    assert sorted(listed) == sorted(["rounds." + ".".join(path.parts) for path in code] + ["rounds.recipes"])


def test_the_wheel_carries_every_file(wheel: Path):
    files = {
        f"rounds/{path.relative_to(REPOSITORY).as_posix()}"
        for name in FOLDERS
        for path in (REPOSITORY / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == files


def test_shipped_files_are_found_by_name(rounds):
    assert rounds("plan", "quickstart", "--keys") == rounds("plan", "recipes/quickstart.yaml", "--keys")
    assert "variants" in rounds("plan", "stages")
    assert "extends" in rounds("plan", "small.yaml")


def test_a_plan_with_a_forecast_executes_nothing_of_the_folder(rounds, folder: Path):
    assert "GiB" in rounds("plan", "med42-v2-70b", "--cluster", "slurm-8xh100", "--store", "store")
    assert (folder / "store" / "shapes.json").exists()  # a process of its own has counted the model's weights


def test_a_recipe_of_init_runs_under_torchrun_and_executes_nothing_of_the_folder(rounds, folder: Path):
    assert "wrote my-run.yaml" in rounds("init", "--data", "mine.csv")
    assert "conversations/loss" in rounds("run", "my-run.yaml", "--cluster", "two.yaml")
    sft = next(folder.glob("store/sft-*"))
    assert (sft / "done.json").exists() and (sft / "logs" / "rank-1.txt").exists()
    logs = "".join(path.read_text() for path in folder.glob("store/*/log.txt"))
    assert "no.such.setting" not in logs and "matplotlibrc" not in logs
    assert '"git_commit": null' in (sft / "stage.json").read_text()


def test_a_job_executes_nothing_of_the_folder(rounds, folder: Path):
    assert "nothing was submitted" in rounds("run", "small.yaml", "--cluster", "jobs.yaml", "--dry-run", "--store", "jobs")
    script = next(folder.glob("jobs/source-*/slurm/job.sh"))
    tools = f"{folder / 'tools'}:{os.environ['PATH']}"
    variables = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1", "PYTHONPATH": ":", "PATH": tools}
    rounds(str(script), command="bash", **variables)
    assert (script.parents[1] / "done.json").exists()
