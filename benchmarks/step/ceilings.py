"""The machine's limits, timed in turns with the contestants: the encoder's matrix product alone, and a memory copy.

The product is [B, D] x [D, F] into memory that is already allocated: the whole output at once, and in chunks of rows
through one buffer that stays in the cache, which is what a step that never keeps the whole output can reach.

Shape letters: B rows of a batch, D width of a row, F latents.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.step.case import Case

WHOLE_BF16 = "product bf16"
COPY = "copy"
_BUFFER_BYTES = 16 << 20
_COPIED = 64 << 20
"""Numbers that are copied, 4 bytes each."""


def ceilings(case: Case, batches: list[Tensor]) -> dict[str, Callable[[Tensor], object]]:
    """Functions to time, by name; like steps they take rows [B, D], but do not use them."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(case.width, case.d, generator=generator)
    low, W_low = batches[0].bfloat16(), W.bfloat16()
    out = {dtype: torch.zeros(case.rows, case.width, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    chunk = torch.zeros(max(1, _BUFFER_BYTES // (2 * case.width)), case.width, dtype=torch.bfloat16)
    source, target = torch.ones(_COPIED), torch.zeros(_COPIED)
    return {
        "product fp32": lambda _: torch.mm(batches[0], W.T, out=out[torch.float32]),
        WHOLE_BF16: lambda _: torch.mm(low, W_low.T, out=out[torch.bfloat16]),
        "product bf16 in chunks": lambda _: _product_in_chunks(low, W_low, chunk),
        COPY: lambda _: target.copy_(source),
    }


def achieved(case: Case, name: str, ms: float) -> str:
    """The rate that a time of `ms` milliseconds means: GFLOP/s of a product, GB/s read and written by the copy."""
    if name == COPY:
        return f"{8 * _COPIED / ms / 1e6:.1f} GB/s"
    return f"{2 * case.rows * case.d * case.width / ms / 1e6:.0f} GFLOP/s"


def _product_in_chunks(low: Tensor, W_low: Tensor, chunk: Tensor) -> None:
    """[B, D] x [D, F], as many rows at a time as the buffer `chunk` [., F] has."""
    for rows in low.split(len(chunk)):
        torch.mm(rows, W_low.T, out=chunk[: len(rows)])
