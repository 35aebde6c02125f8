"""Exact pre-activations of candidates: float32 products, summed in float32 without tensor cores.

A program processes 16 candidates and loops over the columns of all their rows of W_enc at once, so that many loads
overlap: this kernel reads W_enc's float32 rows and is limited by memory bandwidth.

Shape letters: R rows of a chunk, C the capacity of a row's list, D input width, F latents, M candidates of a batch.
"""

import triton
import triton.language as tl
from torch import Tensor

from panscope.kernels.triton import launch
from panscope.kernels.triton.bound import Screened
from panscope.kernels.triton.gather import Lists

_TILE = 16
"""Candidates per program."""
_COLUMNS = 256
"""Columns processed at a time."""


def rescore_lists(screened: Screened, W_enc: Tensor, lists: Lists, first: Tensor | None) -> None:
    """Write exact pre = x.w + b and scores = pre * norms of the lists, from index `first` [R] (None: 0) to `filled`."""
    count, capacity = lists.latents.shape
    tiles = triton.cdiv(capacity, _TILE)
    width = W_enc.shape[1]
    _lists[(count * tiles,)](
        screened.rows.x, W_enc, screened.latent.b_enc, screened.latent.against, lists.latents, first, lists.filled,
        lists.pre, lists.scores, width, capacity, tiles, TILE=_TILE, COLUMNS=_columns(width), num_warps=4,
    )  # fmt: skip


def rescore_flat(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, rows: Tensor, latents: Tensor, count: Tensor, pre: Tensor
) -> None:
    """pre [M] = exact x.w + b for pairs of rows and latents [M]; only the first `count` [] int64 are computed."""
    width = x.shape[1]
    grid = launch.programs(x.device, triton.cdiv(len(pre), _TILE))
    _flat[(grid,)](
        x, W_enc, b_enc, rows, latents, count, pre, width, len(pre),
        TILE=_TILE, COLUMNS=_columns(width), num_warps=4,
    )  # fmt: skip


def _columns(width: int) -> int:
    return min(_COLUMNS, launch.padded(width))


@triton.jit
def _lists(  # noqa: PLR0913
    x, W_enc, b_enc, norms, lists, first, filled, pre, scores, D, C, tiles,
    TILE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    n = (program % tiles) * TILE + tl.arange(0, TILE)
    live = n < tl.minimum(tl.load(filled + row), C)
    if first is not None:
        live = live & (n >= tl.load(first + row))
    if tl.sum(live.to(tl.int32), axis=0) > 0:
        f = tl.load(lists + row * C + n, mask=live, other=0)
        value = products(x, W_enc, row, f, live, D, TILE, COLUMNS) + tl.load(b_enc + f, mask=live, other=0.0)
        tl.store(pre + row * C + n, value, mask=live)
        if norms is not None:
            value = value * tl.load(norms + f, mask=live, other=0.0)
        tl.store(scores + row * C + n, value, mask=live)


@triton.jit
def _flat(  # noqa: PLR0913
    x, W_enc, b_enc, rows, latents, count, pre, D, M, TILE: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    end = tl.minimum(tl.load(count), M)
    start = tl.program_id(0).to(tl.int64) * TILE
    for begin in range(start, end, tl.num_programs(0) * TILE):
        n = begin + tl.arange(0, TILE)
        live = n < end
        row = tl.load(rows + n, mask=live, other=0).to(tl.int64)
        f = tl.load(latents + n, mask=live, other=0)
        value = pair_products(x, W_enc, row, f, live, D, TILE, COLUMNS)
        tl.store(pre + n, value + tl.load(b_enc + f, mask=live, other=0.0), mask=live)


@triton.jit
def products(x, W_enc, row, f, live, D, TILE: tl.constexpr, COLUMNS: tl.constexpr):  # noqa: PLR0913
    """[TILE] x_row . w_f for one row and several latents f; 0 where not `live`."""
    total = tl.zeros([TILE, COLUMNS], tl.float32)
    weight = W_enc + f.to(tl.int64)[:, None] * D
    for begin in range(0, D, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)
        there = column < D
        part = tl.load(weight + column[None, :], mask=live[:, None] & there[None, :], other=0.0)
        total += part * tl.load(x + row * D + column, mask=there, other=0.0)[None, :]
    return tl.sum(total, axis=1)


@triton.jit
def pair_products(x, W_enc, row, f, live, D, TILE: tl.constexpr, COLUMNS: tl.constexpr):  # noqa: PLR0913
    """[TILE] x_row . w_f for pairs of rows and latents; 0 where not `live`."""
    total = tl.zeros([TILE, COLUMNS], tl.float32)
    weight, given = W_enc + f.to(tl.int64)[:, None] * D, x + row[:, None] * D
    for begin in range(0, D, COLUMNS):
        column = (begin + tl.arange(0, COLUMNS))[None, :]
        some = live[:, None] & (column < D)
        total += tl.load(weight + column, mask=some, other=0.0) * tl.load(given + column, mask=some, other=0.0)
    return tl.sum(total, axis=1)
