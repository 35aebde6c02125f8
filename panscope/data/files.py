"""Local text files with random access to their documents: an index of byte offsets is kept in memory, never the text.

We read .txt and .jsonl ourselves because `datasets` first copies local files into a cache in the home folder, and
forgets at which line a fault lies. An index costs 16 bytes a document.
"""

import json
from array import array
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from panscope.storage.file_version import FileVersion
from panscope.types import UserError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MOST_INDEXES = 64
"""Files whose indexes are kept."""


class TextFile(Protocol):
    """One file of documents, numbered from 0."""

    @property
    def units(self) -> np.ndarray:
        """[units] int64: how many documents each unit holds; a unit is what is read from the disk in one piece."""
        ...

    def read(self, index: int) -> str:
        """The text of document `index`, empty if it has none; raises UserError if it cannot be read."""
        ...


class _Spans:
    """Where each document of a plain file begins and ends, in bytes."""

    def __init__(self, path: Path, spans: Callable[[Path], Iterator[tuple[int, int]]]):
        self.path = path
        self.offsets = _offsets(FileVersion.of(path), spans)

    def __len__(self) -> int:
        return len(self.offsets)

    def line(self, index: int) -> int:
        """The line number, from 1, at which document `index` begins; only error messages need it."""
        with self.path.open("rb") as file:
            return file.read(int(self.offsets[index, 0])).count(b"\n") + 1

    def read(self, index: int) -> str:
        begin, end = (int(offset) for offset in self.offsets[index])
        with self.path.open("rb") as file:
            file.seek(begin)
            raw = file.read(end - begin)
        try:
            return raw.removeprefix(_BYTE_ORDER_MARK).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"data.text: {str(self.path)!r} line {self.line(index)} is not UTF-8 ({error.reason}); "
                "convert the file to UTF-8"
            ) from None


@lru_cache(maxsize=_MOST_INDEXES)
def _offsets(version: FileVersion, spans: Callable[[Path], Iterator[tuple[int, int]]]) -> np.ndarray:
    """[documents, 2] int64; the index of a file is made once, as training, evaluation and checks all open it."""
    offsets = array("q")
    for span in spans(version.path):
        offsets.extend(span)
    return np.frombuffer(offsets, dtype=np.int64).reshape(-1, 2)


class ParagraphFile:
    """A .txt file: documents are separated by blank lines."""

    def __init__(self, path: Path):
        self._spans = _Spans(path, _paragraphs)
        self.units = np.ones(len(self._spans), dtype=np.int64)

    def read(self, index: int) -> str:
        """Document `index`, with line ends written as \\n and none at the end."""
        return self._spans.read(index).replace("\r\n", "\n").rstrip("\n")


class LineFile:
    """A .jsonl file: one JSON object a line, its text in `column`; other fields are ignored, blank lines skipped."""

    def __init__(self, path: Path, column: str, setting: str = "data.column"):
        """Read the field `column`, which the user named in `setting`."""
        self._path, self._column, self._setting = path, column, setting
        self._spans = _Spans(path, _lines)
        self.units = np.ones(len(self._spans), dtype=np.int64)

    def read(self, index: int) -> str:
        """Document `index`; a null is an empty text, half a surrogate pair (no character) becomes U+FFFD."""
        line = self._spans.read(index)
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            raise self._fault(index, "is not JSON", "write one object a line") from None
        if not isinstance(fields, dict) or self._column not in fields:
            raise self._fault(index, f"has no field {self._column!r}", f"set {self._setting} to the field of the text")
        text = fields[self._column]
        if not isinstance(text, str | None):
            raise self._fault(
                index, f"has {type(text).__name__} in the field {self._column!r}", f"expected text: set {self._setting}"
            )
        return without_half_pairs(text or "")

    def _fault(self, index: int, what: str, advice: str) -> UserError:
        return UserError(f"data.text: {str(self._path)!r} line {self._spans.line(index)} {what}; {advice}")


class ParquetFile:
    """A .parquet file: one document a row. The text column of one row group, the last one read, is in memory."""

    def __init__(self, path: Path, column: str, setting: str = "data.column"):
        """Read the column `column`, which the user named in `setting`."""
        self._path, self._column = path, column
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                schema, metadata = file.schema_arrow, file.metadata
        except pa.ArrowException as error:
            raise self._broken(error) from None
        if column not in schema.names:
            names = ", ".join(schema.names)
            raise UserError(f"{setting} is {column!r}, but {str(path)!r} has the columns {names}; name one of them")
        kind = schema.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"{setting} is {column!r}, which holds {kind} in {str(path)!r}; name a column of text")
        self.units = np.array([metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)], dtype=np.int64)
        self._ends = np.cumsum(self.units)
        self._group = -1
        self._texts = pa.chunked_array([], pa.string())

    def read(self, index: int) -> str:
        """Row `index`; a null is an empty text."""
        group = int(np.searchsorted(self._ends, index, side="right"))
        if group != self._group:
            self._texts, self._group = self._read_group(group), group
        return self._texts[index - int(self._ends[group] - self.units[group])].as_py() or ""

    def _read_group(self, group: int) -> pa.ChunkedArray:
        try:
            with pyarrow.parquet.ParquetFile(self._path) as file:
                return file.read_row_group(group, columns=[self._column]).column(0)
        except (pa.ArrowException, OSError) as error:
            raise self._broken(error) from None

    def _broken(self, error: Exception) -> UserError:
        reason = str(error).partition("\n")[0]
        return UserError(f"data.text: {str(self._path)!r} is not a good Parquet file ({reason}); write it anew")


def open_file(path: Path, column: str, *, setting: str = "data.column") -> TextFile:
    """Index `path`; `setting` is where the user named `column`.

    Raises UserError if it is not there, cannot be read, its suffix is not one of ours or it has no such column.
    """
    if not path.is_file():
        raise UserError(
            f"data.text: {str(path)!r} is not a file; give the path of a .txt, .jsonl or .parquet file, "
            "or a hub dataset as owner/name"
        )
    try:
        return _open(path, column, setting)
    except OSError as error:
        raise UserError(f"data.text: {str(path)!r} cannot be read ({error}); give a file that can") from None


def _open(path: Path, column: str, setting: str) -> TextFile:
    if path.suffix == ".txt" and setting != "data.column":
        raise UserError(f"{setting} is {column!r}, but {str(path)!r} has no fields: give .jsonl or .parquet")
    if path.suffix == ".txt":
        return ParagraphFile(path)
    if path.suffix == ".jsonl":
        return LineFile(path, column, setting)
    if path.suffix == ".parquet":
        return ParquetFile(path, column, setting)
    raise UserError(f"data.text: the kind {path.suffix!r} of {str(path)!r} is unknown; use .txt, .jsonl or .parquet")


def without_half_pairs(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which JSON can write and which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _lines(path: Path) -> Iterator[tuple[int, int]]:
    """Begin and end of every line that is not blank."""
    begin = 0
    with path.open("rb") as file:
        for line in file:
            if not line.isspace():
                yield begin, begin + len(line)
            begin += len(line)


def _paragraphs(path: Path) -> Iterator[tuple[int, int]]:
    """Begin and end of every run of lines that are not blank."""
    begin = end = 0
    for line_begin, line_end in _lines(path):
        if line_begin != end:
            if end > begin:
                yield begin, end
            begin = line_begin
        end = line_end
    if end > begin:
        yield begin, end
