"""Every benchmark imports, prints its help, and is listed in benchmarks/README.md; nothing is measured here."""

import ast
import importlib
import importlib.util
import runpy
import warnings
from pathlib import Path

import pytest

from benchmarks.support.processes import print_json, run_module
from panscope.types import UserError

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "benchmarks"
FILES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path
    for path in sorted(FOLDER.rglob("*.py"))
    if path.name != "__init__.py"
}
COMMANDS = [name for name, path in FILES.items() if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]
NEEDED = {
    "benchmarks.gpu.step": "triton",
    "benchmarks.inference.saelens_codes": "sae_lens",
    "benchmarks.quality.saelens_trainer": "sae_lens",
    "benchmarks.quality.vs_saelens": "sae_lens",
    "benchmarks.step.dictionary_learning_step": "dictionary_learning",
    "benchmarks.step.saelens_step": "sae_lens",
    "benchmarks.step.sparsify_step": "sparsify",
    "benchmarks.train.sparsify_trainer": "sparsify",
}
"""The package that a module cannot be imported without, where Panscope does not need it."""


def _import(name: str) -> None:
    """Import a benchmark, or skip the test where its package is missing; that package's own warnings do not matter."""
    package = NEEDED.get(name)
    if package is None:
        importlib.import_module(name)
    elif importlib.util.find_spec(package) is None:
        with pytest.raises(ImportError):
            importlib.import_module(name)
        pytest.skip(f"{name} needs {package}, which is not installed: see benchmarks/README.md")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(name)


def test_the_table_of_needed_packages_names_modules_that_exist() -> None:
    assert set(NEEDED) <= set(FILES)
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("name", FILES)
def test_a_benchmark_imports_and_says_what_it_is(name: str) -> None:
    docstring = ast.get_docstring(ast.parse(FILES[name].read_text(encoding="utf-8")))
    assert docstring
    if name in COMMANDS:
        assert f"python -m {name}" in docstring or f"python {FILES[name].relative_to(REPOSITORY)}" in docstring
    _import(name)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import:RuntimeWarning")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_its_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole start of `python -m NAME --help`, in this process."""
    _import(name)
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_the_list_names_every_command_and_no_other_module() -> None:
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert name in listed or str(FILES[name].relative_to(FOLDER)) in listed, name
    for word in listed.replace("`", " ").split():
        if word.startswith("benchmarks.") and word.count(".") == 2:
            assert word in FILES, word


def test_a_process_gives_its_result_back(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"seconds": [1.5, None]})
    assert capsys.readouterr().out == '{"seconds": [1.5, null]}\n'
    with pytest.raises(
        UserError, match=r"`python -m no_such_module 'a b'` failed with exit status 1:\n.*no_such_module"
    ):
        run_module("no_such_module", "a b")
