"""How alike the residual streams of adjacent layers are, and how long their vectors (Multi-Layer SAE, Lawson et al.).

For every pair of adjacent layers, `cosine_to_next`: the mean over rows of the cosine between the two layers' vectors of
the same token, each minus its layer's mean. Without taking the means away, a direction that all tokens share would make
any two layers look alike. For every layer, `norm` and `norm_centred`: the mean L2 norm of its vectors, and of them
minus the mean. Adjacent are the layers that follow each other among those given. A vector equal to its layer's mean has
no direction, and its cosine counts as 0.

Shape letters: S sites, B rows, D width of a site.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from panscope.types import Site

SMALLEST_NORM = 1e-100
"""Below this a float64 vector is taken for 0."""


class AdjacentLayers:
    """Cosines and norms of the rows of one kind of site at several layers: sums that add, however long the text."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = tuple(sorted(sites))
        assert len({site.kind for site in sites}) == 1, "sites are of one kind"
        assert len({site.layer for site in sites}) == len(sites), "sites come once each"
        self._sums: dict[str, Tensor] = {}

    def update(self, rows: Mapping[Site, Tensor], means: Mapping[Site, Tensor]) -> None:
        """Take in one more batch: rows [B, D] of every site, row b of each the same token, and the mean [D] of each."""
        raw = [rows[site].double() for site in self.sites]
        centred = [x - means[site].to(x) for x, site in zip(raw, self.sites, strict=True)]
        units = [torch.nn.functional.normalize(x, dim=1, eps=SMALLEST_NORM) for x in centred]
        cosines = [(unit * following).sum() for unit, following in itertools.pairwise(units)]
        self._take(
            {
                "cosines": torch.stack(cosines) if cosines else raw[0].new_zeros(0),
                "norms": torch.stack([x.norm(dim=1).sum() for x in raw]),
                "centred_norms": torch.stack([x.norm(dim=1).sum() for x in centred]),
                "rows": raw[0].new_tensor(len(raw[0])).long(),
            }
        )

    def merge(self, other: "AdjacentLayers") -> None:
        """Add the sums of `other`; `other` is not changed."""
        assert other.sites == self.sites
        self._take(other._sums)

    def state_dict(self) -> dict[str, Tensor]:
        """The sums: cosines [S - 1], norms and centred_norms [S], rows; empty before the first batch."""
        return {name: value.clone() for name, value in self._sums.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from where `state_dict` was taken, of the same sites."""
        assert not state or len(state["norms"]) == len(self.sites)
        self._sums = {name: value.clone() for name, value in state.items()}

    def numbers(self) -> dict[str, float]:
        """`adjacent_cosine`, the mean of `cosine_to_next` over all pairs; NaN where there is no pair or no row."""
        cosines = self._per_row("cosines")
        return {"adjacent_cosine": math.fsum(cosines) / len(cosines) if cosines else math.nan}

    def by_site(self) -> dict[str, dict[str, float]]:
        """For every site, by its name: `cosine_to_next`, NaN at the last one, `norm` and `norm_centred`."""
        names = ("cosine_to_next", "norm", "norm_centred")
        columns = ([*self._per_row("cosines"), math.nan], self._per_row("norms"), self._per_row("centred_norms"))
        return {
            str(site): dict(zip(names, values, strict=True)) for site, *values in zip(self.sites, *columns, strict=True)
        }

    def _per_row(self, name: str) -> list[float]:
        return (self._sums[name] / self._sums["rows"]).tolist()

    def _take(self, sums: dict[str, Tensor]) -> None:
        one, other = (
            self._sums,
            {name: value.cpu() for name, value in sums.items()},
        )  # sums that were loaded are on the CPU
        self._sums = {name: one[name] + other[name] for name in one} if one and other else one or other
