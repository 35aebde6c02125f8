"""The house's own rules: sizes of files and functions, docstrings, what the reading tour names exists."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
SOURCES = sorted((REPOSITORY / "panscope").rglob("*.py"))
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60
FORBIDDEN_NAMES = {"utils.py", "common.py", "misc.py", "helpers.py"}


def _code_lines(node: ast.AST, text: str) -> int:
    """Lines that hold code: not blank, not a comment, not in a docstring."""
    lines = {
        number
        for child in ast.walk(node)
        if isinstance(child, ast.stmt | ast.expr) and not _is_docstring(child)
        for number in range(child.lineno, (child.end_lineno or child.lineno) + 1)
    }
    for child in ast.walk(node):
        if isinstance(child, ast.Expr) and _is_docstring(child):
            lines -= set(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    source = text.splitlines()
    return sum(1 for number in lines if source[number - 1].strip())


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_file_keeps_to_the_house_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert path.name not in FORBIDDEN_NAMES
    assert ast.get_docstring(tree), "a file says what it is and why it exists"
    assert _code_lines(tree, text) <= MOST_LINES_OF_A_FILE
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert _code_lines(node, text) <= MOST_LINES_OF_A_FUNCTION, node.name


def test_only_one_file_registers_hooks() -> None:
    """Everything that hangs on a language model's modules is in lms/hooks.py."""
    hooking = [path for path in SOURCES if re.search(r"\.register_\w*hook\(", path.read_text(encoding="utf-8"))]
    assert [path.relative_to(REPOSITORY).as_posix() for path in hooking] == ["panscope/lms/hooks.py"]


LAZY = {
    "panscope/__init__.py": "the public names, when the first of them is used",
    "panscope/cli/execute.py": "what a verb does, when it is executed",
    "panscope/cli/main.py": "everything but the flags, when a verb is executed",
    "panscope/extras.py": "optional packages",
    "panscope/kernels/choose.py": "the kernels of a device, as numba and triton need not be installed",
}


def test_what_is_imported_late_is_declared() -> None:
    """Imports in functions are refused by ruff (PLC0415); these files import by name, each for the reason given."""
    late = [path for path in SOURCES if "import_module(" in path.read_text(encoding="utf-8")]
    assert {path.relative_to(REPOSITORY).as_posix() for path in late} == LAZY.keys()


HOMES = {
    "transformers": "lms",
    "datasets": "data",
    "numba": "kernels/cpu",
    "triton": "kernels/triton",
    "obstore": "activations/store",
    "umap": "geometry",
    "vl_convert": "reporting",
}


@pytest.mark.parametrize("name", HOMES)
def test_a_heavy_dependency_has_one_home(name: str) -> None:
    home = HOMES[name]
    pattern = re.compile(rf"^\s*(import|from) {name}\b|optional\(\"{name}[\".]", re.MULTILINE)
    users = [path for path in SOURCES if pattern.search(path.read_text(encoding="utf-8"))]
    assert users
    places = {path.relative_to(REPOSITORY / "panscope").as_posix() for path in users}
    assert not {place for place in places if not place.startswith(f"{home}/")}


def test_no_page_is_half_written() -> None:
    for page in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]:
        assert not re.search(r"@@|TODO|FIXME", page.read_text(encoding="utf-8")), page.name


def test_the_reading_tour_names_files_that_exist() -> None:
    tour = re.findall(r"`(panscope/[\w/]+\.py)`", (REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert len(tour) >= 5
    for name in tour:
        assert (REPOSITORY / name).is_file(), name
