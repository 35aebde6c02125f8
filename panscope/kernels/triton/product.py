"""The screening product, a chunk of rows at a time: the one dense product of a step.

cuBLAS computes it. A chunk bounds the memory; it is far larger than the cache all the same, since a product of few rows
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
"""Of everything that a chunk's rows need."""
_TILE = 256
"""Chunks are whole numbers of this many rows, for cuBLAS."""
_SETTING = Lock()
"""Held while torch's setting is changed: it is the process's, and several threads may step at once."""


def chunks(rows: InputRows, screen: Screen, beside: int) -> Iterator[tuple[slice, Tensor]]:
    """The rows of each chunk and their products [R, F] as float16, scaled as both factors are, in one reused buffer.

    `beside` bytes a row are what the caller keeps for each row of a chunk.
    """
    count, width = len(rows.x), len(screen.low)
    most = _BYTES // (2 * width + beside)
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
    """Partial sums stay float32: cuBLAS may otherwise add them in float16, which the bound does not cover."""
    settings = torch.backends.cuda.matmul
    with _SETTING:
        before = settings.allow_fp16_reduced_precision_reduction
        settings.allow_fp16_reduced_precision_reduction = False
        try:
            yield
        finally:
            settings.allow_fp16_reduced_precision_reduction = before
