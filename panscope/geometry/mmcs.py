"""The mean max cosine similarity (MMCS) of a dictionary with itself: how close latents are to their nearest neighbours.

From the Multi-Layer SAE, whose code takes the upper triangle of all cosines: latent j is compared only with the latents
before j, the first with none, and no cosine counts as less than 0. That lower estimate is computed too, as `upper`.

Shape letters: F latents, D width of a decoder vector.
"""

import math
from typing import Any

import torch
from torch import Tensor

from panscope.geometry.baselines import johnson_lindenstrauss, pair_probability
from panscope.geometry.dictionary import Dictionary
from panscope.geometry.spread import largest, share, spread
from panscope.kernels.cosines import Nearest, Progress, SearchLimits, nearest


def upper(dictionary: Dictionary, progress: Progress) -> Tensor:
    """[F] float64: the largest cosine of each latent with one before it, at least 0; 0 for latents of zeros."""
    before = SearchLimits(stop=torch.arange(len(dictionary)))
    return nearest(dictionary.rows, dictionary.rows, limits=before, progress=progress).cosines[:, 0].clamp_min(0)


def mmcs(dictionary: Dictionary, own: Nearest, before: Tensor, chance: Tensor) -> dict[str, Any]:
    """The numbers of one coder: `own` are its nearest neighbours, `before` from `upper`, `chance` the baseline [F].

    Latents of zeros are counted as `zeros` and excluded from all means.
    """
    cosines, limit = own.cosines[own.found, 0], largest(chance)
    upper_spread = spread(before[dictionary.rows.any(dim=1)])
    return {
        "latents": len(dictionary),
        "width": dictionary.width,
        "zeros": dictionary.zeros,
        **spread(cosines),
        **{f"upper_{name}": upper_spread[name] for name in ("mean", "variance", "sem")},
        "jl": johnson_lindenstrauss(len(dictionary), dictionary.width),
        "jl_probability": pair_probability(len(dictionary)),
        "random_mean": chance.mean().item() if len(chance) > 1 else math.nan,
        "random_max": limit if len(chance) > 1 else math.nan,
        "above_random": share(cosines > limit),
    }
