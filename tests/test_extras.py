"""A missing optional dependency is one sentence with the pip command; nothing optional is imported at start."""

import subprocess
import sys

import pytest

from panscope.extras import optional
from panscope.types import UserError

OPTIONAL = ("umap", "vl_convert", "obstore", "wandb", "tensorboard")


def test_what_is_missing_is_named_with_the_command() -> None:
    with pytest.raises(UserError, match=r"needs no_such_library, .*: pip install 'panscope\[report\]'"):
        optional("no_such_library.part", extra="report")


def test_an_error_inside_of_the_dependency_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "json.tool", None)
    with pytest.raises(ModuleNotFoundError, match=r"json\.tool"):
        optional("json.tool", extra="report")


def test_the_command_line_starts_without_any_of_them() -> None:
    code = f"""
import sys
for name in {OPTIONAL}:
    sys.modules[name] = None
import panscope.cli.main, panscope.api
from panscope.reporting.write import svg
sys.argv = ["panscope", "report", "--help"]
panscope.cli.main.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
