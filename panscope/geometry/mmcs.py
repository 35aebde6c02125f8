"""The mean max cosine similarity of a dictionary with itself: how near every latent has its nearest other one.

Multi-Layer SAE. Its code takes the upper triangle of all cosines: latent j looks only at the latents before j, the
first at none, and no cosine counts as less than 0. That estimator, which is lower, is here too, by the name `upper`.

Shape letters: F latents, D width of a decoder vector.
"""

import math
from typing import Any

import torch
from torch import Tensor

from panscope.geometry.baselines import johnson_lindenstrauss, pair_probability
from panscope.geometry.dictionary import Dictionary
from panscope.geometry.spread import longest, share, spread
from panscope.kernels.cosines import MemoryLimits, Nearest, Progress, nearest


def upper(dictionary: Dictionary, progress: Progress) -> Tensor:
    """[F] float64: the largest cosine of each latent to one before it, at least 0; latents of zeros are 0."""
    before = MemoryLimits(stop=torch.arange(len(dictionary)))
    return nearest(dictionary.rows, dictionary.rows, limits=before, progress=progress).cosines[:, 0].clamp_min(0)


def mmcs(dictionary: Dictionary, own: Nearest, before: Tensor, chance: Tensor) -> dict[str, Any]:
    """The numbers of one coder: `own` is who is nearest in it, `before` from `upper`, `chance` the random baseline [F].

    Latents of zeros are counted under `zeros` and take part in no mean.
    """
    cosines, limit = own.cosines[own.found, 0], longest(chance)
    theirs = spread(before[dictionary.rows.any(dim=1)])
    return {
        "latents": len(dictionary),
        "width": dictionary.width,
        "zeros": dictionary.zeros,
        **spread(cosines),
        **{f"upper_{name}": theirs[name] for name in ("mean", "variance", "sem")},
        "jl": johnson_lindenstrauss(len(dictionary), dictionary.width),
        "jl_probability": pair_probability(len(dictionary)),
        "random_mean": chance.mean().item() if len(chance) > 1 else math.nan,
        "random_max": limit if len(chance) > 1 else math.nan,
        "above_random": share(cosines > limit),
    }
