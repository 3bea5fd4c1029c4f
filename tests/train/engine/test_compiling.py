"""One process compiles while others wait for it, and a killed one holds up nobody; with torch's own loader and a real compiler."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import staged

REPOSITORY = Path(staged.__file__).resolve().parents[1]
COMPILE = """
import sys
from pathlib import Path
from torch.utils import cpp_extension
from rounds.train.engine import compiling

compiling.guard()
folder = Path(sys.argv[1])
(folder / "one.cpp").write_text('extern "C" int one() { return 1; }')
cpp_extension.load("one", [str(folder / "one.cpp")], build_directory=str(folder), is_python_module=False)
print("loaded")
"""
HOLD = """
import os, sys, time
from rounds.train.engine.compiling import Baton

baton = Baton(os.path.join(sys.argv[1], "lock"))
assert baton.try_acquire()
print("held", flush=True)
time.sleep(600)
"""


def test_a_compilation_that_was_killed_holds_up_no_other(tmp_path: Path):
    """Nor does the file that torch's own way leaves behind."""
    (tmp_path / "lock").touch()
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with subprocess.Popen([sys.executable, "-c", COMPILE, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as other:
            try:
                with pytest.raises(subprocess.TimeoutExpired):
                    other.wait(10)
                assert not (tmp_path / "one.so").exists()
            finally:
                holder.kill()
            assert other.communicate(timeout=300)[0] == "loaded\n"
    assert (tmp_path / "one.so").exists()


def test_where_the_user_names_a_folder_it_is_kept(tmp_path: Path):
    asked = "import os; from rounds.train.engine import compiling; compiling.guard(); print(os.environ['TORCH_EXTENSIONS_DIR'])"
    for given, wanted in (({}, tmp_path / "rounds" / "torch_extensions"), ({"TORCH_EXTENSIONS_DIR": str(tmp_path)}, tmp_path)):
        environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path), **given}
        done = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True, cwd=REPOSITORY)
        assert done.stdout.strip() == str(wanted)
