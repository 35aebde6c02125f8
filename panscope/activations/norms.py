"""Norms of each site's activations, measured before training; all normalisers are made from them.

Shape letters: B rows, D width of a site.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from panscope.types import ActivationBatch, Site, UserError


@dataclass(frozen=True)
class SiteNorms:
    """Means over `rows` rows x of one site, in float64."""

    rows: int
    mean_norm: float
    """The mean of ||x||."""
    mean_squared_norm: float
    """The mean of ||x||^2."""
    mean: Tensor
    """[D] float64, the mean of x."""


def measure_norms(source: Iterator[ActivationBatch], rows: int) -> dict[Site, SiteNorms]:
    """Means over the first `rows` rows of `source`, or all if it has fewer; raises UserError if it has none.

    The batch with the last of these rows is consumed entirely.
    """
    assert rows > 0, f"norms are measured over at least one row, not {rows}"
    sums: dict[Site, _Sums] = {}
    seen = 0
    while seen < rows and (batch := next(source, None)) is not None:
        batch = batch.select(slice(rows - seen))
        seen += len(batch)
        for site, x in batch.rows.items():
            sums.setdefault(site, _Sums(x.shape[1], x.device)).add(x)
    if not seen:
        raise UserError("data.text: there is no row of activations to measure norms on; give more text")
    return {site: total.means(seen) for site, total in sums.items()}


class _Sums:
    """Running sums on the device of the rows, to avoid a synchronisation per batch."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._norm, self._squared_norm = torch.zeros(2, dtype=torch.float64, device=device)
        self._total = torch.zeros(width, dtype=torch.float64, device=device)

    def add(self, x: Tensor) -> None:
        """Add the rows [B, D]."""
        x = x.double()
        squared_norms = x.square().sum(dim=1)
        self._norm += squared_norms.sqrt().sum()
        self._squared_norm += squared_norms.sum()
        self._total += x.sum(dim=0)

    def means(self, rows: int) -> SiteNorms:
        return SiteNorms(rows, self._norm.item() / rows, self._squared_norm.item() / rows, (self._total / rows).cpu())
