"""A loop over all latents that keeps the best, for rows whose list of candidates overflowed.

Correct for every input, but slow; needed only for rows with thousands of near-equal scores. For other rows it returns
immediately.

Shape letters: R rows of a chunk, C the capacity of a row's list, D input width, F latents.
"""

import triton
import triton.language as tl
from torch import Tensor

from panscope.kernels.triton import launch
from panscope.kernels.triton.bound import Screened, ordered
from panscope.kernels.triton.choose import keep
from panscope.kernels.triton.gather import Lists
from panscope.kernels.triton.kth import kth_bits
from panscope.kernels.triton.rescore import products

TILE = 64
"""Latents processed at a time; lists need a capacity of at least k plus this."""
_BLOCK = 4096
_COLUMNS = 128


def scan(screened: Screened, W_enc: Tensor, k: int, low: Tensor, lists: Lists) -> None:
    """Refill each list that overflowed with latents that include the k best; `low` [R] is at most the k-th score."""
    rows, (count, capacity) = screened.rows, lists.latents.shape
    width = W_enc.shape[1]
    _scan[(count,)](
        screened.product, rows.x, W_enc, *screened.latent, rows.size, rows.lost, low,
        lists.latents, lists.filled, lists.pre, lists.scores, width, len(W_enc), capacity, k, screened.sums,
        TILE=TILE, COLUMNS=min(_COLUMNS, launch.padded(width)), BLOCK=min(_BLOCK, launch.padded(capacity)), num_warps=4,
    )  # fmt: skip


@triton.jit
def _scan(  # noqa: PLR0913
    product, x, W_enc, b_enc, sizes, losts, norms, row_sizes, row_losts, lows, lists, filled, pre, scores,
    D, F, C, k, sums, TILE: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if tl.load(filled + row) <= C:
        return
    at = row * C
    size, lost, low = tl.load(row_sizes + row), tl.load(row_losts + row), tl.load(lows + row)
    held = tl.full((), 0, tl.int32)
    for first in range(0, F, TILE):
        f = first + tl.arange(0, TILE)
        best = ordered(product + row * F, f, f < F, b_enc, sizes, losts, norms, size, lost, sums, False)
        found = (best >= low) & (best > 0)
        added = tl.sum(found.to(tl.int32), axis=0)
        if added > 0:
            value = products(x, W_enc, row, f, found, D, TILE, COLUMNS) + tl.load(b_enc + f, mask=found, other=0.0)
            score = value
            if norms is not None:
                score = value * tl.load(norms + f, mask=found, other=0.0)
            place = at + held + tl.cumsum(found.to(tl.int32), axis=0) - 1
            tl.store(lists + place, f, mask=found)
            tl.store(pre + place, value, mask=found)
            tl.store(scores + place, score, mask=found)
            tl.debug_barrier()
            held += added
            if held > C - TILE:
                key = kth_bits(scores + at, held, k, BLOCK)
                held = keep(scores + at, pre + at, lists + at, held, k, key, pre + at, lists + at, BLOCK)
                low = tl.maximum(low, key.to(tl.float32, bitcast=True))
    tl.store(filled + row, held)
