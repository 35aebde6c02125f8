"""Lists the candidates of each row: latents whose upper bound is in a range, from the groups that contain any.

One program per row lists the groups, then reads only these. Each call appends latents in ascending order.

Shape letters: R rows of a chunk, F latents, G groups, C the capacity of a row's list.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from panscope.kernels.triton import launch
from panscope.kernels.triton.bound import Screened, ordered

_BLOCK = 1024
"""Groups processed at a time."""
_TILE = 512
"""Latents processed at a time; at least a group."""


@dataclass(frozen=True)
class Lists:
    """The candidates of each row of a chunk."""

    latents: Tensor
    """[R, C] int32."""
    filled: Tensor
    """[R] int32, the number of candidates found; more than C if a list overflowed and latents are missing."""
    pre: Tensor
    """[R, C] exact pre-activations, after rescoring."""
    scores: Tensor
    """[R, C] exact scores, after rescoring."""

    @classmethod
    def empty(cls, count: int, capacity: int, device: torch.device) -> "Lists":
        """Empty lists for `count` rows of `capacity` = C candidates."""
        latents = torch.empty(count, capacity, dtype=torch.int32, device=device)
        filled = torch.zeros(count, dtype=torch.int32, device=device)
        pre, scores = torch.empty(2, count, capacity, dtype=torch.float32, device=device)
        return cls(latents, filled, pre, scores)


def gather(screened: Screened, tops: Tensor, group: int, low: Tensor, high: Tensor | None, lists: Lists) -> None:
    """Append the latents whose `bound.order` is positive, at least `low` [R] and below `high` [R] (None: no limit)."""
    rows, count, groups = screened.rows, *tops.shape
    listed = torch.empty_like(tops, dtype=torch.int32)
    _gather[(count,)](
        screened.product, tops, *screened.latent, rows.size, rows.lost, low, high, listed, lists.latents, lists.filled,
        screened.product.shape[1], groups, lists.latents.shape[1], screened.sums,
        GROUP=group, BLOCK=min(_BLOCK, launch.padded(groups)), TILE=_TILE, num_warps=4,
    )  # fmt: skip


@triton.jit
def _gather(  # noqa: PLR0913
    product, tops, b_enc, sizes, losts, against, row_sizes, row_losts, lows, highs, listed, lists, filled,
    F, G, C, sums, GROUP: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    low = tl.load(lows + row)
    groups = list_groups(tops + row * G, listed + row * G, G, low, BLOCK)
    size, lost, held = tl.load(row_sizes + row), tl.load(row_losts + row), tl.load(filled + row)
    for first in range(0, groups * GROUP, TILE):
        f = members(listed + row * G, first, groups, F, GROUP, TILE)
        best = ordered(product + row * F, f, f < F, b_enc, sizes, losts, against, size, lost, sums, False)
        found = (best >= low) & (best > 0)
        if highs is not None:
            found = found & (best < tl.load(highs + row))
        place = held + tl.cumsum(found.to(tl.int32), axis=0) - 1
        tl.store(lists + row * C + place, f, mask=found & (place < C))
        held += tl.sum(found.to(tl.int32), axis=0)
    tl.store(filled + row, held)


@triton.jit
def list_groups(tops, listed, G, low, BLOCK: tl.constexpr):
    """List the groups of a row whose top is at least `low`; returns their number."""
    held = tl.full((), 0, tl.int32)
    for first in range(0, G, BLOCK):
        g = first + tl.arange(0, BLOCK)
        keep = tl.load(tops + g, mask=g < G, other=-float("inf")) >= low
        keep = keep & (g < G)
        place = held + tl.cumsum(keep.to(tl.int32), axis=0) - 1
        tl.store(listed + place, g, mask=keep)
        held += tl.sum(keep.to(tl.int32), axis=0)
    tl.debug_barrier()  # the list is read by other threads than those that wrote it
    return held


@triton.jit
def members(listed, first, groups, F, GROUP: tl.constexpr, TILE: tl.constexpr):
    """The latents at `first` to `first` + TILE - 1 of the listed groups; F beyond the last."""
    n = first + tl.arange(0, TILE)
    live = n < groups * GROUP
    g = tl.load(listed + n // GROUP, mask=live, other=0)
    return tl.where(live, g * GROUP + n % GROUP, F)
