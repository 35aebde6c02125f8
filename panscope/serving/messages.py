"""A window's rows as Arrow messages, and back, without a copy.

A message has a column for every site, a list of fixed length a row, and the column of token id, document id and
position. Arrow has no bfloat16, so it goes as the same 16 bits in an unsigned integer.

Shape letters: W rows of a window, n rows of a message, D width of a column.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from panscope.activations.store.layout import StoredColumn

_ROWS, _BYTES = 512, 8 << 20
"""Of a message at most."""
_PLAIN = {torch.bfloat16: np.uint16, torch.float32: np.float32, torch.int64: np.int64}


def empty(column: StoredColumn, rows: int) -> NDArray[Any]:
    """[rows, D] room for rows of a column, as they are sent."""
    return np.empty((rows, column.width), dtype=_PLAIN[column.dtype])


def plain(rows: Tensor) -> NDArray[Any]:
    """[n, D] stored rows as they are sent; the same memory."""
    return (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()


def tensor(rows: NDArray[Any], column: StoredColumn) -> Tensor:
    """[n, D] undo `plain`."""
    return torch.from_numpy(rows).view(column.dtype)


def schema(columns: Sequence[StoredColumn]) -> pa.Schema:
    """Of the messages that carry these columns."""
    return pa.schema([(column.folder, _type(column)) for column in columns])


def messages(columns: Sequence[StoredColumn], window: Mapping[str, NDArray[Any]]) -> Iterator[pa.RecordBatch]:
    """The messages of a window, [W, D] a column by its folder's name, in the order in which rows are stored."""
    kind = schema(columns)
    step = max(1, min(_ROWS, _BYTES // sum(column.row_bytes for column in columns)))
    rows = len(window[columns[0].folder])
    for first in range(0, rows, step):
        pieces = [_array(window[column.folder][first : first + step], column) for column in columns]
        yield pa.RecordBatch.from_arrays(pieces, schema=kind)


def rows_of(message: pa.RecordBatch, columns: Sequence[StoredColumn]) -> list[NDArray[Any]]:
    """[n, D] a column, views of the message."""
    found = []
    for column in columns:
        lists = message.column(column.folder)
        first = lists.offset * column.width
        flat = lists.values.to_numpy(zero_copy_only=True)[first : first + len(lists) * column.width]
        found.append(flat.reshape(len(lists), column.width))
    return found


def _type(column: StoredColumn) -> pa.DataType:
    return pa.list_(pa.from_numpy_dtype(_PLAIN[column.dtype]), column.width)


def _array(rows: NDArray[Any], column: StoredColumn) -> pa.Array:
    flat = pa.Array.from_buffers(pa.from_numpy_dtype(rows.dtype), rows.size, [None, pa.py_buffer(rows)])
    return pa.FixedSizeListArray.from_arrays(flat, column.width)
