"""All pre-activations that exceed their floor, without the [B, F] matrix: for JumpReLU, ReLU and running thresholds.

Candidates are the latents whose upper bound (`bound.order`) exceeds the floor; they are counted row by row, listed in
order, rescored exactly, counted again and written. The host synchronises once, for the number of entries; more often
only if there are too many candidates (over 1.5 times the capacity, or 2^25), when the batch is processed in halves.

Shape letters: B rows, R rows of a chunk, F latents, G groups, M candidates, N entries.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from panscope.kernels.backend import Entries, InputRows, Screen
from panscope.kernels.triton import launch
from panscope.kernels.triton.bound import Latent, ordered, screened
from panscope.kernels.triton.gather import list_groups, members
from panscope.kernels.triton.groups import tops
from panscope.kernels.triton.rescore import rescore_flat

_GROUP = 32
"""Adjacent latents for which the first pass computes one maximum."""
_BLOCK = 1024
"""Groups or candidates processed at a time."""
_TILE = 512
"""Latents processed at a time."""
_EXTRA_CANDIDATES = 4096
"""Candidates that can be listed beyond 1.5 times the capacity."""
_MAX_CANDIDATES = 1 << 25
"""Maximal number of candidates that can be listed, 12 bytes each."""


def above(
    rows: InputRows, W_enc: Tensor, b_enc: Tensor, screen: Screen, floor: Tensor, capacity: int
) -> Entries | None:
    """Entries with pre > floor [F]; None if there are more than `capacity`."""
    count, (width, inputs) = len(rows.x), W_enc.shape
    launch.checked("x", rows.x, count, inputs)
    launch.checked("W_enc", W_enc, width, inputs)
    launch.checked("b_enc", b_enc, width)
    launch.checked("floor", floor, width)
    max_candidates = min(count * width, max(width, min(capacity + capacity // 2 + _EXTRA_CANDIDATES, _MAX_CANDIDATES)))
    starts, latents, of_row = _candidates(rows, screen, b_enc, floor, max_candidates)
    pre = torch.empty(max_candidates, dtype=torch.float32, device=rows.x.device)
    if max_candidates:
        rescore_flat(rows.x, W_enc, b_enc, of_row, latents, starts[-1], pre)
    ends = _count(starts, latents, pre, floor, max_candidates)
    candidates, entries = torch.stack((starts[-1], ends[-1])).tolist()
    if candidates > max_candidates:
        return _in_halves(rows, W_enc, b_enc, screen, floor, capacity)
    if entries > capacity:
        return None
    return _write(starts, latents, pre, floor, ends, entries)


def _in_halves(
    rows: InputRows, W_enc: Tensor, b_enc: Tensor, screen: Screen, floor: Tensor, capacity: int
) -> Entries | None:
    """`above`, with half the rows at a time; the candidates of a single row always fit."""
    middle, found = len(rows.x) // 2, []
    for part in (slice(None, middle), slice(middle, None)):
        half = InputRows(rows.x[part], rows.low[part], rows.size[part], rows.lost[part])
        entries = above(half, W_enc, b_enc, screen, floor, capacity)
        if entries is None:
            return None
        capacity -= len(entries.values)
        found.append(entries)
    first, second = found
    starts = torch.cat((first.starts, second.starts[1:] + first.starts[-1]))
    return Entries(torch.cat((first.values, second.values)), torch.cat((first.latents, second.latents)), starts)


def _candidates(
    rows: InputRows, screen: Screen, b_enc: Tensor, floor: Tensor, max_candidates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The start of each row's candidates [B + 1], their latents [M] and their rows [M]."""
    device, groups = rows.x.device, triton.cdiv(len(floor), _GROUP)
    starts = torch.zeros(len(rows.x) + 1, dtype=torch.int64, device=device)
    latents, of_row = torch.empty(2, max_candidates, dtype=torch.int32, device=device)
    sizes = {"GROUP": _GROUP, "BLOCK": min(_BLOCK, launch.padded(groups)), "TILE": _TILE, "num_warps": 4}
    for chunk in screened(rows, screen, Latent(b_enc, screen.size, screen.lost, floor), 8 * groups):
        count, part = len(chunk.product), chunk.part
        best = tops(chunk, _GROUP, floor=True)
        listed = torch.empty_like(best, dtype=torch.int32)
        counts = torch.empty(count, dtype=torch.int64, device=device)
        inputs = (chunk.product, best, *chunk.latent, chunk.rows.size, chunk.rows.lost, listed)
        shape = (part.start, max_candidates, len(floor), groups, chunk.sums)
        _find[(count,)](*inputs, counts, None, None, None, *shape, **sizes)
        starts[part.start + 1 : part.stop + 1] = counts.cumsum(0) + starts[part.start]
        _find[(count,)](*inputs, None, starts, latents, of_row, *shape, **sizes)
    return starts, latents, of_row


@triton.jit
def _find(  # noqa: PLR0913
    product, tops, b_enc, sizes, losts, floors, row_sizes, row_losts, listed, counts, starts, latents, of_row,
    offset, room, F, G, sums, GROUP: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Count a row's candidates (if `counts` is given), or list them from the row's start on."""
    row = tl.program_id(0).to(tl.int64)
    size, lost = tl.load(row_sizes + row), tl.load(row_losts + row)
    groups = list_groups(tops + row * G, listed + row * G, G, 0.0, BLOCK)
    held = tl.full((), 0, tl.int64)
    if starts is not None:
        held = tl.load(starts + offset + row)
    for first in range(0, groups * GROUP, TILE):
        f = members(listed + row * G, first, groups, F, GROUP, TILE)
        best = ordered(product + row * F, f, f < F, b_enc, sizes, losts, floors, size, lost, sums, True)
        found = best >= 0
        if starts is not None:
            place = held + tl.cumsum(found.to(tl.int32), axis=0) - 1
            tl.store(latents + place, f, mask=found & (place < room))
            tl.store(of_row + place, (offset + row).to(tl.int32), mask=found & (place < room))
        held += tl.sum(found.to(tl.int32), axis=0)
    if counts is not None:
        tl.store(counts + row, held)


def _count(starts: Tensor, latents: Tensor, pre: Tensor, floor: Tensor, max_candidates: int) -> Tensor:
    """[B + 1] the start of each row's entries."""
    ends = torch.zeros_like(starts)
    count = len(starts) - 1
    if count:
        _keep[(count,)](starts, latents, pre, floor, ends, None, None, max_candidates, BLOCK=_BLOCK, num_warps=4)
    return ends.cumsum(0)


def _write(starts: Tensor, latents: Tensor, pre: Tensor, floor: Tensor, ends: Tensor, entries: int) -> Entries:
    """The candidates that exceed their floor."""
    values = torch.empty(entries, dtype=torch.float32, device=pre.device)
    places = torch.empty(entries, dtype=torch.int64, device=pre.device)
    if entries:
        count = len(starts) - 1
        _keep[(count,)](starts, latents, pre, floor, ends, values, places, len(pre), BLOCK=_BLOCK, num_warps=4)
    return Entries(values, places, ends)


@triton.jit
def _keep(starts, latents, pre, floors, ends, values, places, room, BLOCK: tl.constexpr):  # noqa: PLR0913
    """Count a row's candidates above the floor into ends[row + 1] or, with `values`, write them from ends[row] on."""
    row = tl.program_id(0)
    begin, end = tl.load(starts + row), tl.minimum(tl.load(starts + row + 1), room)
    held = tl.full((), 0, tl.int64)
    if values is not None:
        held = tl.load(ends + row)
    for first in range(begin, end, BLOCK):
        n = first + tl.arange(0, BLOCK)
        f = tl.load(latents + n, mask=n < end, other=0)
        value = tl.load(pre + n, mask=n < end, other=-float("inf"))
        found = (value > tl.load(floors + f, mask=n < end, other=0.0)) & (n < end)
        if values is not None:
            place = held + tl.cumsum(found.to(tl.int32), axis=0) - 1
            tl.store(values + place, value, mask=found)
            tl.store(places + place, f, mask=found)
        held += tl.sum(found.to(tl.int32), axis=0)
    if values is None:
        tl.store(ends + row + 1, held)
