"""Nearest rows of one matrix for every row of another, by cosine, without a matrix of all pairs in memory.

Each pair of blocks is one float32 product of unit rows, which finds the nearest rows; their cosines are then recomputed
in float64, so that results do not depend on the blocks. A row of zeros has no direction: it has no neighbours and is
not the neighbour of any row.

Shape letters: A query rows, B candidate rows, D width of both, K nearest, R query rows of a block, C candidate rows of
a block.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 4096
"""Rows of a block: a product of two blocks takes 64 MiB."""
_GATHERED = 1 << 23
"""Elements gathered at a time for the exact cosines: 64 MiB of float64."""

Progress = Callable[[int, int], None]
"""Called with the number of rows done and the total."""


@dataclass(frozen=True)
class Nearest:
    """The K nearest rows of every row, nearest first; padded with (cosine 0, index -1) if there are fewer."""

    cosines: Tensor
    """[A, K] float64."""
    indices: Tensor
    """[A, K] int64, rows of the other matrix; -1 for padding."""

    @property
    def found(self) -> Tensor:
        """[A] bool: whether a row has a neighbour."""
        return self.indices[:, 0] >= 0


@dataclass(frozen=True)
class SearchLimits:
    """Which rows of B each row of A may have as neighbours; by default, all."""

    excluded: Tensor | None = None
    """[A] int64: for each row, one row of B that is not its neighbour, such as itself."""
    stop: Tensor | None = None
    """[A] int64: for each row, only rows of B with an index below this may be its neighbours."""

    def rows(self, chosen: slice) -> "SearchLimits":
        """The limits of a slice of the rows of A."""
        excluded = None if self.excluded is None else self.excluded[chosen]
        return SearchLimits(excluded, None if self.stop is None else self.stop[chosen])

    def mask_out(self, products: Tensor, start: int) -> None:
        """Set the products [A, C] with rows of B that are not allowed to -inf, in place; B's rows begin at `start`."""
        end = start + products.shape[1]
        columns = torch.arange(start, end, device=products.device)
        if self.excluded is not None and ((self.excluded >= start) & (self.excluded < end)).any():
            products.masked_fill_(columns == self.excluded.to(products.device)[:, None], -math.inf)
        if self.stop is not None and (self.stop < end).any():
            products.masked_fill_(columns >= self.stop.to(products.device)[:, None], -math.inf)


NO_LIMITS = SearchLimits()


def excluding_self(rows: int) -> SearchLimits:
    """The limits for a search within one matrix: no row is its own neighbour."""
    return SearchLimits(excluded=torch.arange(rows))


def _no_progress(done: int, total: int) -> None:
    """Ignore progress."""


def nearest(
    a: Tensor,
    b: Tensor,
    k: int = 1,
    *,
    limits: SearchLimits = NO_LIMITS,
    block: int = BLOCK,
    progress: Progress = _no_progress,
) -> Nearest:
    """The `k` rows of b [B, D] with the largest cosine to every row of a [A, D], on the same device."""
    assert a.shape[1] == b.shape[1] and len(b) and k > 0 and block > 0, f"{a.shape}, {b.shape}, k {k}, block {block}"
    units, parts = unit_rows(b), []
    for start in range(0, len(a), block):
        rows = slice(start, min(start + block, len(a)))
        indices = _search(unit_rows(a[rows]), units, k, limits.rows(rows), block)
        parts.append(_exact(a[rows], b, indices))
        progress(rows.stop, len(a))
    if not parts:
        empty = torch.empty(0, k, device=a.device)
        return Nearest(empty.double(), empty.long())
    return Nearest(torch.cat([part.cosines for part in parts]), torch.cat([part.indices for part in parts]))


def unit_rows(matrix: Tensor) -> Tensor:
    """The rows [n, D] scaled to norm 1 in float64, as float32; rows of zeros are unchanged."""
    return torch.cat([directions(rows).float() for rows in matrix.split(BLOCK)]) if len(matrix) else matrix.float()


def directions(rows: Tensor) -> Tensor:
    """The vectors [..., D] scaled to norm 1, as float64; zero vectors are unchanged."""
    rows = rows.double()
    norms = rows.norm(dim=-1, keepdim=True)
    return rows / norms.masked_fill(norms == 0, 1)


def _search(a: Tensor, b: Tensor, k: int, limits: SearchLimits, block: int) -> Tensor:
    """[R, K] int64: the nearest of the unit rows b [B, D] for the unit rows a [R, D]; -1 for padding."""
    best = torch.full((len(a), k), -math.inf, device=a.device)
    indices = torch.full((len(a), k), -1, device=a.device)
    end = len(b) if limits.stop is None else min(len(b), int(limits.stop.max()))
    for start in range(0, end, block):
        others = b[start : start + block]
        products = a @ others.T
        limits.mask_out(products, start)
        nonzero = others.any(dim=1)
        if not nonzero.all():
            products.masked_fill_(~nonzero, -math.inf)
        new, columns = products.max(dim=1, keepdim=True) if k == 1 else products.topk(min(k, len(others)), dim=1)
        best, order = torch.cat([best, new], dim=1).topk(k, dim=1)
        indices = torch.cat([indices, columns + start], dim=1).gather(1, order)
    missing = best.isinf() | ~a.any(dim=1, keepdim=True)
    return indices.masked_fill(missing, -1)


def _exact(a: Tensor, b: Tensor, indices: Tensor) -> Nearest:
    """The neighbours `indices` [R, K] of rows a [R, D] with their float64 cosines, sorted by these."""
    rows = max(1, _GATHERED // max(1, indices.shape[1] * a.shape[1]))
    cosines = torch.cat(
        [
            torch.einsum("rd,rkd->rk", directions(some), directions(b[found.clamp_min(0)]))
            for some, found in zip(a.split(rows), indices.split(rows), strict=True)
        ]
    )
    cosines = cosines.clamp(-1, 1).masked_fill(indices < 0, -math.inf)
    cosines, order = cosines.sort(dim=1, descending=True, stable=True)
    return Nearest(cosines.masked_fill(cosines.isinf(), 0), indices.gather(1, order))
