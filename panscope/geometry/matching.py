"""Max-cosine matching of one coder to another: do they learn the same features (Llama Scope, section 4.6, Fig. 8)?

Every latent of A is matched to the latent of B whose decoder vector is nearest. The same matching between two random
dictionaries of the same shapes is the baseline.

Shape letters: F latents of A, D width of a decoder vector.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from panscope.geometry.baselines import Baselines, johnson_lindenstrauss
from panscope.geometry.dictionary import Dictionary
from panscope.geometry.spread import largest, share, spread
from panscope.kernels.cosines import Progress, nearest

_SAME = (0.5, 0.7, 0.9)
"""Cosines for which the share of latents above is reported."""


@dataclass(frozen=True)
class Matching:
    """The match of each latent of A in B."""

    partner: Tensor
    """[F] int64, -1 for latents of zeros."""
    cosine: Tensor
    """[F] float64."""
    random_cosine: Tensor
    """[F] float64: the cosines of as many random directions, in no relation to the individual latents."""
    width: int
    """D."""

    def numbers(self) -> dict[str, Any]:
        """The numbers for the summary: distributions of the cosines and of the baseline, and shares of A's latents."""
        found, limit = self.cosine[self.partner >= 0], largest(self.random_cosine)
        return {
            "latents": len(self.partner),
            "zeros": int((self.partner < 0).sum()),
            "cosine": spread(found),
            "random": spread(self.random_cosine),
            "above_random": share(found > limit),
            "above": {f"{least:g}": share(found > least) for least in _SAME},
            "jl": johnson_lindenstrauss(len(self.partner), self.width),
            "partners": len(self.partner[self.partner >= 0].unique()),
        }


def match(a: Dictionary, b: Dictionary, baselines: Baselines, progress: Progress) -> Matching:
    """Match every latent of `a` to one of `b`."""
    found = nearest(a.rows, b.rows, progress=progress)
    chance = baselines.pair(len(a), len(b), a.width, progress)
    return Matching(found.indices[:, 0], found.cosines[:, 0], chance.cosines, a.width)
