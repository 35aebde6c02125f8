"""The screening product in chunks of rows: the one dense product of a step.

cuBLAS computes it. Chunks limit the memory; they are nevertheless far larger than the cache, since products of few rows
would read the encoder too often.

Shape letters: B rows, D input width, F latents, R rows of a chunk.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor

from panscope.kernels.backend import InputRows, Screen

_BYTES = 1 << 29
"""Memory of all that a chunk's rows need."""
_TILE = 256
"""The number of rows of a chunk is a multiple of this, for cuBLAS."""
_SETTING = Lock()
"""Held while torch's setting is changed: it is global, and several threads may run a step at once."""


def chunks(rows: InputRows, screen: Screen, extra_bytes: int) -> Iterator[tuple[slice, Tensor]]:
    """The slice of each chunk and its products [R, F] in float16, scaled like both factors, in one reused buffer.

    `extra_bytes` is the memory per row that the caller needs in addition.
    """
    count, width = len(rows.x), len(screen.low)
    most = _BYTES // (2 * width + extra_bytes)
    most = min(count, most // _TILE * _TILE or max(1, most))
    buffer = torch.empty(most, width, dtype=torch.float16, device=rows.x.device)
    for first in range(0, count, max(1, most)):
        part = slice(first, min(count, first + most))
        product = buffer[: part.stop - part.start]
        with _full_sums():
            torch.mm(rows.low[part], screen.low.T, out=product)
        yield part, product


@contextmanager
def _full_sums() -> Iterator[None]:
    """A context in which cuBLAS keeps partial sums in float32: the error bound does not cover sums in float16."""
    settings = torch.backends.cuda.matmul
    with _SETTING:
        before = settings.allow_fp16_reduced_precision_reduction
        settings.allow_fp16_reduced_precision_reduction = False
        try:
            yield
        finally:
            settings.allow_fp16_reduced_precision_reduction = before
