"""The nearest rows of one matrix for every row of another, by cosine, with no matrix of all pairs in memory.

A block of rows meets a block of others in one float32 product of unit rows, which finds who is nearest; the cosines of
those few are then computed again in float64, so what is given does not depend on how the rows were cut into blocks.
A row of zeros has no direction: it finds nobody and nobody finds it.

Shape letters: A rows that search, B rows that are found, D width of both, K nearest, R rows of a block, C of another.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 4096
"""Rows of a block: a product of two blocks takes 64 MiB."""
_GATHERED = 1 << 23
"""Numbers gathered at a time for the exact cosines: 64 MiB of float64."""

Progress = Callable[[int, int], None]
"""Is told how many of how many rows are done."""


@dataclass(frozen=True)
class Nearest:
    """The K nearest of every row, nearest first; where a row finds fewer, the places left over are (0, -1)."""

    cosines: Tensor
    """[A, K] float64."""
    indices: Tensor
    """[A, K] int64, rows of the other matrix; -1 for nobody."""

    @property
    def found(self) -> Tensor:
        """[A] bool: whether a row found anybody."""
        return self.indices[:, 0] >= 0


@dataclass(frozen=True)
class MemoryLimits:
    """Who may be found by whom; left out, everybody by everybody."""

    without: Tensor | None = None
    """[A] int64: the one row of B that each row must not find, such as itself."""
    until: Tensor | None = None
    """[A] int64: each row finds only rows of B with a smaller number than this."""

    def rows(self, chosen: slice) -> "MemoryLimits":
        """Those of some rows of A."""
        without = None if self.without is None else self.without[chosen]
        return MemoryLimits(without, None if self.until is None else self.until[chosen])

    def forbid(self, products: Tensor, start: int) -> None:
        """Take out of products [A, C], those with rows `start` on of B, what must not be found; in place."""
        end = start + products.shape[1]
        columns = torch.arange(start, end, device=products.device)
        if self.without is not None and ((self.without >= start) & (self.without < end)).any():
            products.masked_fill_(columns == self.without.to(products.device)[:, None], -math.inf)
        if self.until is not None and (self.until < end).any():
            products.masked_fill_(columns >= self.until.to(products.device)[:, None], -math.inf)


EVERYBODY = MemoryLimits()


def itself(rows: int) -> MemoryLimits:
    """The limits of a search within one matrix: no row finds itself."""
    return MemoryLimits(without=torch.arange(rows))


def _unheard(done: int, total: int) -> None:
    """Nobody listens."""


def nearest(
    a: Tensor,
    b: Tensor,
    k: int = 1,
    *,
    limits: MemoryLimits = EVERYBODY,
    block: int = BLOCK,
    progress: Progress = _unheard,
) -> Nearest:
    """The `k` rows of b [B, D] with the largest cosine to every row of a [A, D]; both lie on one device."""
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
    """[., D] float32: every row at norm 1, found in float64; rows of zeros stay as they are."""
    return torch.cat([directions(rows).float() for rows in matrix.split(BLOCK)]) if len(matrix) else matrix.float()


def directions(rows: Tensor) -> Tensor:
    """[..., D] float64: vectors at norm 1; zeros stay as they are."""
    rows = rows.double()
    norms = rows.norm(dim=-1, keepdim=True)
    return rows / norms.masked_fill(norms == 0, 1)


def _search(a: Tensor, b: Tensor, k: int, limits: MemoryLimits, block: int) -> Tensor:
    """[R, K] int64: whom unit rows a [R, D] find in unit rows b [B, D]; -1 for nobody."""
    best = torch.full((len(a), k), -math.inf, device=a.device)
    indices = torch.full((len(a), k), -1, device=a.device)
    last = len(b) if limits.until is None else min(len(b), int(limits.until.max()))
    for start in range(0, last, block):
        others = b[start : start + block]
        products = a @ others.T
        limits.forbid(products, start)
        there = others.any(dim=1)
        if not there.all():
            products.masked_fill_(~there, -math.inf)
        new, places = products.max(dim=1, keepdim=True) if k == 1 else products.topk(min(k, len(others)), dim=1)
        best, order = torch.cat([best, new], dim=1).topk(k, dim=1)
        indices = torch.cat([indices, places + start], dim=1).gather(1, order)
    nobody = best.isinf() | ~a.any(dim=1, keepdim=True)
    return indices.masked_fill(nobody, -1)


def _exact(a: Tensor, b: Tensor, indices: Tensor) -> Nearest:
    """The float64 cosines of rows a [R, D] to whom they found, and the order these put them in."""
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
