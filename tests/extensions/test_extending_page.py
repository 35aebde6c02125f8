"""The examples of docs/extending.md are pieces of real files."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
PACKAGE = REPOSITORY / "tests" / "support" / "extension_package"
PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)


def test_there_is_one_for_each_axis():
    assert len(BLOCKS) == PAGE.count("```") // 2 == 8


@pytest.mark.parametrize(("path", "code"), BLOCKS, ids=[f"{path} {number}" for number, (path, _) in enumerate(BLOCKS)])
def test_a_quoted_piece_is_in_its_file(path: str, code: str):
    file = PACKAGE / path if (PACKAGE / path).is_file() else REPOSITORY / path
    assert code in file.read_text(encoding="utf-8")
