"""The guides do what they say: notebooks are run, suites are planned, every command is one that the program takes."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

from panscope.cli import main
from panscope.lms.facts import facts_of
from panscope.planning.plan import SuiteConfig, plan

REPOSITORY = Path(__file__).parent.parent.parent
GUIDES = REPOSITORY / "docs" / "guides"
NOTEBOOKS = sorted(GUIDES.glob("*.ipynb"))
_PAGES = ("index", "coming_from", "troubleshooting", "sizing")
PAGES = sorted([*GUIDES.glob("*.md"), *(REPOSITORY / "docs" / f"{name}.md" for name in _PAGES)])
RUNNER = REPOSITORY / "tools" / "run_notebook.py"
NO_WIDGETS = "TqdmWarning: IProgress not found"
"""What a library of ours says in every notebook where ipywidgets is missing."""
NO_NETWORK = '''
"""Python reads this file when it starts: nothing but this machine can be reached."""
import socket

_connect = socket.socket.connect

def connect(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
        raise AssertionError(f"a network call: {address}")
    return _connect(self, address)

def getaddrinfo(host, *arguments, **options):
    raise AssertionError(f"a network call: {host}")

socket.socket.connect = connect
socket.getaddrinfo = getaddrinfo
'''


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One thread, no network, and nothing of the user's own settings."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_NETWORK, encoding="utf-8")
    own = {"IPYTHONDIR": str(tmp_path / "ipython"), "JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter")}
    path = os.pathsep.join([str(tmp_path / "site"), str(REPOSITORY)])
    return os.environ | own | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _run(words: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_from_top_to_bottom(path: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "work").mkdir()
    before, stored = set(GUIDES.rglob("*")), path.read_bytes()
    done = _run([str(RUNNER), str(path), str(tmp_path / "done.ipynb")], tmp_path / "work", environment)
    assert done.returncode == 0, done.stderr

    book = nbformat.read(tmp_path / "done.ipynb", as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    results = [output for output in outputs if output.output_type == "execute_result"]
    assert len(results) > len(code) // 2, "cells show what they found"
    others = [output for output in outputs if output not in results]
    shown = [output for output in others if output.output_type == "display_data"]
    assert all("<div>" in output.data["text/html"] for output in shown), "and the progress of training"
    assert all(NO_WIDGETS in output.get("text", "") for output in others if output not in shown), "and nothing else"
    assert (tmp_path / "work" / "runs").is_dir(), "what it makes is in the folder it is run in"
    assert set(GUIDES.rglob("*")) == before and path.read_bytes() == stored


def test_notebooks_run_without_network(tmp_path: Path, environment: dict[str, str]) -> None:
    tried = _run(["-c", "import socket; socket.create_connection(('example.org', 80))"], tmp_path, environment)
    assert "AssertionError: a network call: example.org" in tried.stderr
    tried = _run(["-c", "import socket; socket.socket().connect(('192.0.2.1', 80))"], tmp_path, environment)
    assert "AssertionError: a network call: ('192.0.2.1', 80)" in tried.stderr


def test_there_is_a_notebook_for_training_and_for_latents() -> None:
    assert [path.name for path in NOTEBOOKS] == ["latents.ipynb", "train.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    for cell in book.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


def _blocks(language: str, pages: list[Path]) -> list[tuple[str, str]]:
    """Every fenced block of that language, with its page."""
    found = []
    for page in pages:
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        found += [(page.name, block) for own, block in blocks if own == language]
    return found


def test_suites_of_the_guides_can_be_planned() -> None:
    blocks = _blocks("toml", sorted(GUIDES.glob("*.md")))
    assert blocks
    for page, block in blocks:
        suite = SuiteConfig.read(tomllib.loads(block), page)
        planned = plan(suite, facts_of(suite.model), memory_bytes=16 << 30)
        assert len(planned.coders) == 15, "2 x 2 x 3 of TopK and 3 of JumpReLU, as its comments say"


def _commands() -> list[str]:
    blocks = [block.replace("\\\n", " ") for _, block in _blocks("", PAGES)]
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("panscope ")]
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                lines += [line for line in cell.source.splitlines() if line.startswith("panscope ")]
    return [re.split(r"\s+#", line)[0] for line in lines]


@pytest.mark.parametrize("command", _commands())
def test_a_command_is_one_that_the_program_takes(command: str) -> None:
    words = shlex.split(command)[1:]
    assert type(main.parsed(words)).__module__.startswith("panscope.cli.flags.")
