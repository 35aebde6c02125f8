"""Conversion of a window's rows to Arrow record batches and back, without copying.

A message has one fixed-size-list column per site, and one for token id, document id and position. Arrow has no
bfloat16, so bfloat16 values are sent as uint16 with the same bits.

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

_MAX_ROWS, _MAX_BYTES = 512, 8 << 20
"""Limits of one message."""
_NUMPY_TYPES = {torch.bfloat16: np.uint16, torch.float32: np.float32, torch.int64: np.int64}


def empty_rows(column: StoredColumn, rows: int) -> NDArray[Any]:
    """An uninitialised array [rows, D] in the type in which the column is sent."""
    return np.empty((rows, column.width), dtype=_NUMPY_TYPES[column.dtype])


def to_array(rows: Tensor) -> NDArray[Any]:
    """[n, D] stored rows in the type in which they are sent; shares memory with `rows`."""
    return (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()


def to_tensor(rows: NDArray[Any], column: StoredColumn) -> Tensor:
    """[n, D] the inverse of `to_array`; shares memory with `rows`."""
    return torch.from_numpy(rows).view(column.dtype)


def schema(columns: Sequence[StoredColumn]) -> pa.Schema:
    """The schema of messages with these columns."""
    return pa.schema([(column.folder, _arrow_type(column)) for column in columns])


def messages(columns: Sequence[StoredColumn], window: Mapping[str, NDArray[Any]]) -> Iterator[pa.RecordBatch]:
    """Split a window, given as [W, D] per column's folder name, into messages in stored order."""
    message_schema = schema(columns)
    step = max(1, min(_MAX_ROWS, _MAX_BYTES // sum(column.row_bytes for column in columns)))
    rows = len(window[columns[0].folder])
    for first in range(0, rows, step):
        arrays = [_arrow_array(window[column.folder][first : first + step], column) for column in columns]
        yield pa.RecordBatch.from_arrays(arrays, schema=message_schema)


def message_rows(message: pa.RecordBatch, columns: Sequence[StoredColumn]) -> list[NDArray[Any]]:
    """[n, D] per column: views of the message's memory."""
    arrays = []
    for column in columns:
        lists = message.column(column.folder)
        first = lists.offset * column.width
        flat = lists.values.to_numpy(zero_copy_only=True)[first : first + len(lists) * column.width]
        arrays.append(flat.reshape(len(lists), column.width))
    return arrays


def _arrow_type(column: StoredColumn) -> pa.DataType:
    return pa.list_(pa.from_numpy_dtype(_NUMPY_TYPES[column.dtype]), column.width)


def _arrow_array(rows: NDArray[Any], column: StoredColumn) -> pa.Array:
    flat = pa.Array.from_buffers(pa.from_numpy_dtype(rows.dtype), rows.size, [None, pa.py_buffer(rows)])
    return pa.FixedSizeListArray.from_arrays(flat, column.width)
