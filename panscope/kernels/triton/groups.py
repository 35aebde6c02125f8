"""One pass over the screened scores that computes an upper bound for each group of adjacent latents.

Later kernels read a group's scores only if its bound is high enough. A program processes a block of latents for several
rows, so that the latents' terms are read once for all of these rows.

Shape letters: R rows of a chunk, F latents, G groups.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from panscope.kernels.triton.bound import Screened, of_latents, of_row, order

_LATENTS = 1024
"""Latents per program."""
_ROWS = 16
"""Rows per program."""


def tops(screened: Screened, group: int, floor: bool) -> Tensor:
    """[R, G] the largest `bound.order` in each group of `group` (a power of two) latents."""
    product, rows = screened.product, screened.rows
    count, width = product.shape
    groups = triton.cdiv(width, group)
    found = torch.empty(count, groups, dtype=torch.float32, device=product.device)
    across, down = triton.cdiv(width, _LATENTS), triton.cdiv(count, _ROWS)
    _tops[(across * down,)](
        product, *screened.latent, rows.size, rows.lost, found, count, width, groups, across, screened.sums,
        GROUP=group, GROUPS=_LATENTS // group, ROWS=_ROWS, FLOOR=floor, num_warps=4,
    )  # fmt: skip
    return found


@triton.jit
def _tops(  # noqa: PLR0913
    product, b_enc, sizes, losts, against, row_sizes, row_losts, found, R, F, G, across, sums,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, FLOOR: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    g = (program % across) * GROUPS + tl.arange(0, GROUPS)
    f = g[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    b, size, lost, undo = of_latents(b_enc, sizes, losts, f, f < F)
    other = against if against is None else tl.load(against + f, mask=f < F, other=0.0)
    begin = (program // across) * ROWS
    for row in range(begin, begin + ROWS, 4):
        # Four rows are loaded before the first is processed, so that their loads overlap.
        s0, size0, lost0 = _row(product, row_sizes, row_losts, row, f, R, F)
        s1, size1, lost1 = _row(product, row_sizes, row_losts, row + 1, f, R, F)
        s2, size2, lost2 = _row(product, row_sizes, row_losts, row + 2, f, R, F)
        s3, size3, lost3 = _row(product, row_sizes, row_losts, row + 3, f, R, F)
        top0 = _top(s0, size0, lost0, b, size, lost, undo, other, f < F, sums, FLOOR)
        top1 = _top(s1, size1, lost1, b, size, lost, undo, other, f < F, sums, FLOOR)
        top2 = _top(s2, size2, lost2, b, size, lost, undo, other, f < F, sums, FLOOR)
        top3 = _top(s3, size3, lost3, b, size, lost, undo, other, f < F, sums, FLOOR)
        at = found + tl.cast(row, tl.int64) * G + g
        tl.store(at, top0, mask=(g < G) & (row < R))
        tl.store(at + G, top1, mask=(g < G) & (row + 1 < R))
        tl.store(at + 2 * G, top2, mask=(g < G) & (row + 2 < R))
        tl.store(at + 3 * G, top3, mask=(g < G) & (row + 3 < R))


@triton.jit
def _row(product, row_sizes, row_losts, row, f, R, F):
    """A row's products with the latents f, its norm and its loss; 0 beyond the last row."""
    there = row < R
    at = product + tl.cast(row, tl.int64) * F
    size = tl.load(row_sizes + row, mask=there, other=0.0)
    lost = tl.load(row_losts + row, mask=there, other=0.0)
    return tl.load(at + f, mask=(f < F) & there, other=0.0), size, lost


@triton.jit
def _top(s, row_size, row_lost, b, size, lost, undo, other, live, sums, FLOOR: tl.constexpr):  # noqa: PLR0913
    """The largest `order` of each group; -inf for a row with NaN."""
    for_size, for_lost, for_undo = of_row(row_size, row_lost, sums)
    best = order(s, b, size, lost, undo, other, for_size, for_lost, for_undo, FLOOR)
    top = tl.max(tl.where(live, best, -float("inf")), axis=1)
    return tl.where(row_size == row_size, top, -float("inf"))
