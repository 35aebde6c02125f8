"""Local text files with random access to documents: only an index of byte offsets is kept in memory, not the text.

.txt and .jsonl files are not read by `datasets`, which first copies local files into a cache in the home folder, and
does not report the line of an error. The index needs 16 bytes per document.
"""

import json
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from panscope.storage.file_version import FileVersion
from panscope.types import UserError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_SHOWN = 20


class TextFile(Protocol):
    """A file of documents, numbered from 0."""

    @property
    def units(self) -> np.ndarray:
        """[units] int64: number of documents in each unit; a unit is read from disk as a whole."""
        ...

    def read(self, index: int) -> str:
        """The text of document `index`, possibly empty; raises UserError if it cannot be read."""
        ...


@dataclass(frozen=True)
class ColumnKind:
    """What a column contains."""

    name: str
    """Plural, for error messages."""
    accepts: Callable[[pa.DataType], bool]
    """Whether a Parquet column of this type contains it."""


TEXT = ColumnKind("text", lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind))


class _Spans:
    """Byte offsets of the documents of a plain-text file."""

    def __init__(self, path: Path, spans: Callable[[Path], Iterator[tuple[int, int]]]) -> None:
        self.path = path
        self.offsets = _offsets(FileVersion.of(path), spans)

    def __len__(self) -> int:
        return len(self.offsets)

    def line(self, index: int) -> int:
        """The line number, from 1, at which document `index` begins; for error messages."""
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


@cache
def _offsets(version: FileVersion, spans: Callable[[Path], Iterator[tuple[int, int]]]) -> np.ndarray:
    """[documents, 2] int64, begin and end of each document; cached, as a run opens each file several times."""
    offsets = array("q")
    for span in spans(version.path):
        offsets.extend(span)
    return np.frombuffer(offsets, dtype=np.int64).reshape(-1, 2)


class ParagraphFile:
    """A .txt file: documents are separated by blank lines."""

    def __init__(self, path: Path) -> None:
        self._spans = _Spans(path, _paragraphs)
        self.units = np.ones(len(self._spans), dtype=np.int64)

    def read(self, index: int) -> str:
        """Document `index`, with line breaks normalised to \\n and none at the end."""
        return self._spans.read(index).replace("\r\n", "\n").rstrip("\n")


class LineFile:
    """A .jsonl file: one JSON object per line with its text in `column`; blank lines are skipped."""

    def __init__(self, path: Path, column: str, setting: str = "data.column") -> None:
        """Read the field `column`; `setting` is the setting with its name, for error messages."""
        self._path, self._column, self._setting = path, column, setting
        self._spans = _Spans(path, _lines)
        self.units = np.ones(len(self._spans), dtype=np.int64)

    def read(self, index: int) -> str:
        """Document `index`; null is read as empty text, and lone surrogates are replaced by U+FFFD."""
        text = self.value(index)
        if not isinstance(text, str | None):
            raise self._line_error(
                index, f"has {type(text).__name__} in the field {self._column!r}", f"expected text: set {self._setting}"
            )
        return replace_lone_surrogates(text or "")

    def value(self, index: int) -> Any:
        """The field of line `index`, whatever it is."""
        line = self._spans.read(index)
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            raise self._line_error(index, "is not JSON", "write one object per line") from None
        if not isinstance(fields, dict) or self._column not in fields:
            raise self._line_error(
                index,
                f"has no field {self._column!r}{it_has(fields)}",
                f"set {self._setting} to the field with the text",
            )
        return fields[self._column]

    def place(self, index: int) -> str:
        """The file and the line of document `index`."""
        return f"{str(self._path)!r} line {self._spans.line(index)}"

    def _line_error(self, index: int, what: str, advice: str) -> UserError:
        return UserError(f"data.text: {self.place(index)} {what}; {advice}")


class ParquetFile:
    """A .parquet file: one document per row. The column of the last used row group is kept in memory."""

    def __init__(self, path: Path, column: str, setting: str = "data.column", kind: ColumnKind = TEXT) -> None:
        """Read the column `column`, which must be of the kind `kind`; `setting` is the setting with its name."""
        self._path, self._column = path, column
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                schema, metadata = file.schema_arrow, file.metadata
        except pa.ArrowException as error:
            raise self._invalid_file_error(error) from None
        if column not in schema.names:
            names = ", ".join(schema.names)
            raise UserError(f"{setting} is {column!r}, but {str(path)!r} has the columns {names}; choose one of them")
        found = schema.field(column).type
        if not kind.accepts(found):
            raise UserError(
                f"{setting} is {column!r}, which has the type {found} in {str(path)!r}; choose a column of {kind.name}"
            )
        self.units = np.array([metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)], dtype=np.int64)
        self._ends = np.cumsum(self.units)
        self._group = -1
        self._texts = pa.chunked_array([], pa.string())

    def read(self, index: int) -> str:
        """Row `index`; null is read as empty text."""
        return self.value(index) or ""

    def value(self, index: int) -> Any:
        """What row `index` has in the column."""
        group = int(np.searchsorted(self._ends, index, side="right"))
        if group != self._group:
            self._texts, self._group = self._read_group(group), group
        return self._texts[index - int(self._ends[group] - self.units[group])].as_py()

    def place(self, index: int) -> str:
        """The file and the row of document `index`."""
        return f"{str(self._path)!r} row {index}"

    def _read_group(self, group: int) -> pa.ChunkedArray:
        try:
            with pyarrow.parquet.ParquetFile(self._path) as file:
                return file.read_row_group(group, columns=[self._column]).column(0)
        except (pa.ArrowException, OSError) as error:
            raise self._invalid_file_error(error) from None

    def _invalid_file_error(self, error: Exception) -> UserError:
        reason = str(error).partition("\n")[0]
        return UserError(f"data.text: {str(self._path)!r} is not a valid Parquet file ({reason}); create it again")


def open_file(path: Path, column: str, *, setting: str = "data.column") -> TextFile:
    """Open and index the file `path`; `setting` is the setting with the name `column`, for error messages.

    Raises UserError if the file is missing, unreadable or of an unknown type, or if it has no such column.
    """
    if path.suffix != ".txt" or setting != "data.column":
        return open_rows(path, column, setting=setting)
    with _readable(path):
        return ParagraphFile(path)


def open_rows(
    path: Path, column: str, *, setting: str = "data.column", kind: ColumnKind = TEXT
) -> LineFile | ParquetFile:
    """The same for a file with columns, whose column may be of another kind than text."""
    with _readable(path):
        if path.suffix == ".jsonl":
            return LineFile(path, column, setting)
        if path.suffix == ".parquet":
            return ParquetFile(path, column, setting, kind)
    if path.suffix == ".txt":
        raise UserError(f"{setting} is {column!r}, but {str(path)!r} has no fields: use .jsonl or .parquet")
    raise UserError(f"data.text: the type {path.suffix!r} of {str(path)!r} is unknown; use .txt, .jsonl or .parquet")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise UserError if `path` is not a file, or cannot be read."""
    if not path.is_file():
        raise UserError(
            f"data.text: {str(path)!r} is not a file; give the path of a .txt, .jsonl or .parquet file, "
            "or a hub dataset as owner/name"
        )
    try:
        yield
    except OSError as error:
        raise UserError(f"data.text: {str(path)!r} cannot be read ({error}); make it readable") from None


def it_has(fields: Any) -> str:
    """The part of an error message that names the fields of a row, if it has any."""
    names = ", ".join(map(repr, list(fields)[:_MAX_SHOWN])) if isinstance(fields, dict) else ""
    return f" (it has {names}{', ...' if len(fields) > _MAX_SHOWN else ''})" if names else ""


def replace_lone_surrogates(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which JSON can contain although it is not a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _lines(path: Path) -> Iterator[tuple[int, int]]:
    """Byte offsets (begin, end) of every line that is not blank."""
    begin = 0
    with path.open("rb") as file:
        for line in file:
            if not line.isspace():
                yield begin, begin + len(line)
            begin += len(line)


def _paragraphs(path: Path) -> Iterator[tuple[int, int]]:
    """Byte offsets (begin, end) of every maximal run of lines that are not blank."""
    begin = end = 0
    for line_begin, line_end in _lines(path):
        if line_begin != end:
            if end > begin:
                yield begin, end
            begin = line_begin
        end = line_end
    if end > begin:
        yield begin, end
