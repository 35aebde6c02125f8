"""The commands in the pages on publishing can be copied as they stand: what explains them is a comment."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["publishing.md", "guides/publish.md"])
def test_what_explains_a_command_is_a_comment(page: str):
    lines = [line for line in (DOCS / page).read_text().splitlines() if line.startswith(("panscope ", "hf "))]
    assert len(lines) >= 4
    for line in lines:
        command, _, said = re.sub(r"\s{2,}", "\n", line).partition("\n")
        assert not said or said.startswith("# "), line
        assert "#" not in command
