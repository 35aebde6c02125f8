"""Feature splitting: how the latents of a narrow coder correspond to those of a wider coder of the same site.

Bricken et al. 2023; Llama Scope, section 4.6. Every wide latent has a parent, the nearest narrow latent. It is new if
its parent is no nearer than random directions are to each other; otherwise it is a child of its parent, and a latent
with several children has split. Independently, `explained` measures whether a wide latent is a combination of narrow
ones (`combination.py`).

Shape letters: F latents of the wide coder, G of the narrow one, D width of a decoder vector, K vectors combined.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panscope.geometry.baselines import Baselines
from panscope.geometry.combination import combined, explained
from panscope.geometry.dictionary import Dictionary
from panscope.geometry.spread import largest, share, spread
from panscope.kernels.cosines import Progress, nearest


@dataclass(frozen=True)
class Splitting:
    """The correspondence of the latents of a wide coder to those of a narrow one."""

    parent: Tensor
    """[F] int64, -1 for latents of zeros."""
    cosine: Tensor
    """[F] float64: cosine with the parent."""
    explained: Tensor
    """[F] float64: share explained by the K nearest narrow latents."""
    random_explained: Tensor
    """[F] float64: the same for random directions, in no relation to the individual latents."""
    threshold: float
    """A latent whose cosine with its parent is at most this is new: the largest cosine of the random dictionaries."""
    narrow: int
    """G."""
    combined: int
    """K."""

    @property
    def is_new(self) -> Tensor:
        """[F] bool; a latent of zeros is neither new nor a child."""
        return (self.parent >= 0) & (self.cosine <= self.threshold)

    @property
    def children(self) -> Tensor:
        """[G] int64: the number of wide latents that have each narrow latent as their parent, except new ones."""
        return torch.bincount(self.parent[(self.parent >= 0) & ~self.is_new], minlength=self.narrow)

    def numbers(self) -> dict[str, Any]:
        """The numbers for the summary.

        `not_combined` is the share of wide latents that the narrow ones explain no better than chance, and
        `with_children` the number of narrow latents that have 0, 1, 2 ... children.
        """
        found, children = self.parent >= 0, self.children
        counts = torch.bincount(children).tolist() if len(children) else []
        return {
            "wide": len(self.parent),
            "narrow": self.narrow,
            "zeros": int((~found).sum()),
            "threshold": self.threshold,
            "new": share(self.is_new[found]),
            "cosine": spread(self.cosine[found]),
            "combined": self.combined,
            "explained": spread(self.explained[found]),
            "random_explained": spread(self.random_explained),
            "not_combined": share(self.explained[found] <= largest(self.random_explained)),
            "split": share(children > 1),
            "with_children": {str(number): count for number, count in enumerate(counts) if count},
        }


def split(narrow: Dictionary, wide: Dictionary, baselines: Baselines, progress: Progress) -> Splitting:
    """Find the parents of the latents of `wide` in `narrow`."""
    k = combined(wide.width)
    found = nearest(wide.rows, narrow.rows, k, progress=progress)
    chance = baselines.pair(len(wide), len(narrow), wide.width, progress)
    return Splitting(
        parent=found.indices[:, 0],
        cosine=found.cosines[:, 0],
        explained=explained(wide.rows, narrow.rows, found.indices),
        random_explained=chance.explained,
        threshold=largest(chance.cosines),
        narrow=len(narrow),
        combined=k,
    )
