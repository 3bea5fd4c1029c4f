"""A module has tests that its name leads to: `tests/ROOM/test_MODULE.py`, or the file whose docstring says that it covers it."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
MODULES = {
    str(path.relative_to(REPOSITORY).with_suffix(""))
    for top in ("train", "data_prep")
    for path in (REPOSITORY / top).rglob("*.py")
    if path.name != "__init__.py"
}


def test_every_module_has_tests_that_its_name_leads_to():
    covered: dict[str, Path] = {}
    for file in TESTS.rglob("test_*.py"):
        told = re.search(r"Covers: ([^.]+)\.", ast.get_docstring(ast.parse(file.read_text())) or "")
        covered |= {each.strip(): file for each in told[1].split(",")} if told else {}
    assert not covered.keys() - MODULES, "Covers: names what is no module"
    own = {module for module in MODULES if (TESTS / Path(module).parent / f"test_{Path(module).name.lstrip('_')}.py").is_file()}
    assert not covered.keys() & own, "has a file of its own"
    assert covered.keys() | own == MODULES, "add a test file of its name, or name it in the docstring of the file that tests it"
