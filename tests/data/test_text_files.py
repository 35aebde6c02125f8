"""Local files: the documents of each file type, and errors for invalid files."""

import json
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panscope.data.files import TextFile, open_file
from panscope.types import UserError


def _texts(file: TextFile) -> list[str]:
    return [file.read(i) for i in range(int(file.units.sum()))]


def _open(folder: Path, name: str, content: bytes) -> TextFile:
    (folder / name).write_bytes(content)
    return open_file(folder / name, "text")


def test_paragraphs_are_runs_of_lines_that_are_not_blank(tmp_path: Path) -> None:
    content = "\ufeff one\ntwo\n\n \t\n\nthree é\r\nfour\r\n\r\nfive".encode()
    assert _texts(_open(tmp_path, "a.txt", content)) == [" one\ntwo", "three é\nfour", "five"]


@given(st.lists(st.sampled_from(["", " ", "a", "b c", "é"]), max_size=12), st.booleans())
def test_paragraphs_equal_those_of_a_whole_read(lines: list[str], ends: bool) -> None:
    path = Path(tempfile.gettempdir()) / f"panscope-paragraphs-{os.getpid()}.txt"
    path.write_text("\n".join(lines) + "\n" * ends)
    expected: list[list[str]] = [[]]
    for line in lines:
        expected = [*expected[:-1], [*expected[-1], line]] if line.strip() else [*expected, []]
    try:
        assert _texts(open_file(path, "text")) == ["\n".join(group) for group in expected if group]
    finally:
        path.unlink()


def test_lines_with_other_and_irregular_fields(tmp_path: Path) -> None:
    rows = [{"text": "one", "meta": 1}, {"meta": {"deep": [1, None]}, "text": "two\n\nlines"}, {"text": None}]
    content = "\n".join(json.dumps(row) for row in rows).encode().replace(b"\n", b"\n \n\n", 1)
    assert _texts(_open(tmp_path, "a.jsonl", content)) == ["one", "two\n\nlines", ""]


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    content = rb'{"text": "a\ud83d b \ud83d\ude00"}'
    assert _texts(_open(tmp_path, "a.jsonl", content)) == ["a\ufffd b \U0001f600"]


def test_parquet_rows_over_row_groups(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(10)] + [None]
    table = pa.table({"n": list(range(11)), "text": texts})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    file = open_file(tmp_path / "a.parquet", "text")
    assert file.units.tolist() == [4, 4, 3]
    assert _texts(file) == [text or "" for text in texts]
    assert [file.read(i) for i in (9, 0, 4)] == ["text 9", "text 0", "text 4"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"{oops", "line 3 is not JSON"),
        (b"[" * 100_000, "line 3 is not JSON"),
        (b"1" * 5_000, "line 3 is not JSON"),
        (b'["text"]', "line 3 has no field 'text'"),
        (b'{"body": "x"}', r"line 3 has no field 'text' \(it has 'body'\); set data.column"),
        (b'{"text": 7}', "line 3 has int in the field 'text'"),
        (b'{"text": "\xff"}', "line 3 is not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, sentence: str) -> None:
    file = _open(tmp_path, "a.jsonl", b'{"text": "fine"}\n\n' + line + b'\n{"text": "fine"}\n')
    assert [file.read(0), file.read(2)] == ["fine", "fine"]
    with pytest.raises(UserError, match=r"a\.jsonl.*" + sentence):
        file.read(1)


def test_text_that_is_not_utf8_is_named_by_its_line(tmp_path: Path) -> None:
    file = _open(tmp_path, "a.txt", b"one\n\ntwo\n\xff")
    with pytest.raises(UserError, match=r"a\.txt' line 3 is not UTF-8"):
        file.read(1)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"text": [1]}), tmp_path / "numbers.parquet")
    (tmp_path / "text.csv").touch()
    (tmp_path / "bad.parquet").write_text("not parquet at all")
    (tmp_path / "folder.txt").mkdir()
    for name, column, sentence in [
        ("missing.txt", "text", "is not a file; give"),
        ("folder.txt", "text", "is not a file; give"),
        ("text.csv", "text", r"'\.csv'.*is unknown; use \.txt, \.jsonl or \.parquet"),
        ("bad.parquet", "text", "is not a valid Parquet file"),
        ("numbers.parquet", "text", "has the type int64"),
        ("numbers.parquet", "body", "has the columns text; choose one"),
    ]:
        with pytest.raises(UserError, match=sentence):
            open_file(tmp_path / name, column)


def test_a_parquet_file_damaged_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"text": ["one", "two"]}), path)
    file = open_file(path, "text")
    path.write_bytes(b"gone")
    with pytest.raises(UserError, match="is not a valid Parquet file"):
        file.read(0)
