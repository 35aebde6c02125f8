"""A run in a real notebook kernel draws one output, which is updated, and needs no widgets."""

import sys
from typing import Any

import pytest

from panscope.listeners.notebook import NotebookListener, in_notebook

CODE = """
from panscope import api
suite = {
    "tokens": 1280,
    "data": {"context": 32, "sequences": 8, "held_out": 0.1},
    "activations": {"norm_rows": 256, "buffer_rows": 512},
    "train": {"batch": 128, "log_every": 5, "checkpoint_every": 10},
    "eval": {"tokens": 200},
    "coders": [{"layers": [1], "width": 16, "sparsity": 2}],
}
results = api.train(suite, "run"QUIET)
"""


def outputs_of(code: str, folder: Any) -> list[Any]:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook.cells[0].outputs


def test_progress_is_shown_by_default_and_quiet_silences_it(tmp_path):
    shown = outputs_of(CODE.replace("QUIET", ""), tmp_path)
    html = [output.data["text/html"] for output in shown if output.output_type == "display_data"]
    assert len(html) == 1 and "1 coder (topk) at resid_post" in html[0]
    (tmp_path / "quiet").mkdir()
    assert outputs_of(CODE.replace("QUIET", ", quiet=True"), tmp_path / "quiet") == []


def test_elsewhere_there_is_no_notebook(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
    with pytest.raises(RuntimeError, match="take TerminalListener elsewhere"):
        NotebookListener()
