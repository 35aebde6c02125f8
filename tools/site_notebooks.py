"""A hook of the documentation site: notebooks are shown as they ran, since a guide without its results shows little.

In the repository they are without outputs, which change with every run. What ran is kept under build/notebooks by what
the notebook and the package hold, so that `mkdocs serve` runs one again only where something of these has changed.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files

REPOSITORY = Path(__file__).resolve().parent.parent
RUNNER = Path(__file__).parent / "run_notebook.py"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The site's files, with notebooks that have run in the place of those that have not."""
    for file in files if config.extra["run_notebooks"] else ():
        if file.src_uri.endswith(".ipynb"):
            file.abs_src_path = str(_shown(Path(str(file.abs_src_path))))
    return files


def _shown(notebook: Path) -> Path:
    shown = REPOSITORY / "build" / "notebooks" / _fingerprint(notebook) / notebook.name
    if not shown.is_file():
        shown.parent.mkdir(parents=True, exist_ok=True)
        done = shown.with_suffix(".running")
        _run(notebook, done)
        _without_warnings(done)
        done.rename(shown)
    return shown


def _fingerprint(notebook: Path) -> str:
    digest = hashlib.sha256(notebook.read_bytes())
    for source in sorted((REPOSITORY / "panscope").rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _run(notebook: Path, result: Path) -> None:
    paths = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, str(RUNNER), str(notebook), str(result)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise PluginError(f"the notebook {notebook.name} does not run: {done.stderr.strip()[-2000:]}")


def _without_warnings(path: Path) -> None:
    """What libraries say on stderr is of the machine that ran it."""
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(book, path)
