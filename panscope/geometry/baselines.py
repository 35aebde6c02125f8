"""Random baselines: how similar vectors are by chance.

The bound is that of Llama Scope, section 4.6 (the Johnson-Lindenstrauss lemma's inner-product version): of F random
directions in D dimensions, a pair has a cosine above sqrt(12 ln F / D) with probability of about 2/F. The empirical
baseline searches among random unit vectors of exactly the shapes of the coders, which is tighter (the paper's 32,768
directions in 4,096 dimensions: bound 0.174, largest cosine found 0.09).

Shape letters: F and G latents of two dictionaries, D width of a decoder vector.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from panscope.geometry.combination import combined, explained
from panscope.kernels.cosines import Progress, excluding_self, nearest


def johnson_lindenstrauss(latents: int, width: int) -> float:
    """The bound on the cosines of F random directions in D dimensions; a bound above 1 is vacuous."""
    return math.sqrt(12 * math.log(latents) / width)


def pair_probability(latents: int) -> float:
    """The approximate probability that a pair exceeds the bound of `johnson_lindenstrauss`."""
    return min(1.0, 2 / latents)


def random_rows(latents: int, width: int, seed: int) -> Tensor:
    """[F, D] float32 in uniformly distributed directions, independent of the device."""
    return torch.randn(latents, width, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class RandomPair:
    """The similarity of the latents of one random dictionary to those of another."""

    cosines: Tensor
    """[F] the largest cosine of each latent."""
    explained: Tensor
    """[F] the share of each latent explained by a combination of its nearest neighbours (`combination.py`)."""


class Baselines:
    """Random baselines, computed once per shape."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed = seed
        self._device = device
        self._own: dict[tuple[int, int], Tensor] = {}
        self._pairs: dict[tuple[int, int, int], RandomPair] = {}

    def own(self, latents: int, width: int, progress: Progress) -> Tensor:
        """[F] float64: the largest cosine of each of F random directions with any of the others."""
        if (latents, width) not in self._own:
            rows = self._rows(latents, width, 2 * self._seed)
            self._own[latents, width] = nearest(rows, rows, limits=excluding_self(latents), progress=progress).cosines[
                :, 0
            ]
        return self._own[latents, width]

    def pair(self, latents: int, others: int, width: int, progress: Progress) -> RandomPair:
        """The similarity of F random directions to G others."""
        shape = latents, others, width
        if shape not in self._pairs:
            a, b = self._rows(latents, width, 2 * self._seed), self._rows(others, width, 2 * self._seed + 1)
            found = nearest(a, b, combined(width), progress=progress)
            self._pairs[shape] = RandomPair(found.cosines[:, 0], explained(a, b, found.indices))
        return self._pairs[shape]

    def _rows(self, latents: int, width: int, seed: int) -> Tensor:
        return random_rows(latents, width, seed).to(self._device)
