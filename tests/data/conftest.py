"""A writer of small text files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from panscope.data.documents import LocalDocuments
from panscope.data.files import open_file


@pytest.fixture
def write(tmp_path: Path) -> Callable[[list[str]], LocalDocuments]:
    """Write texts to a .jsonl file and open it."""

    def write(texts: list[str]) -> LocalDocuments:
        path = tmp_path / "text.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return LocalDocuments([open_file(path, "text")])

    return write
