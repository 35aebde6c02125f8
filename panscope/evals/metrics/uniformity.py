"""`uniformity`: how evenly the active latents matter to the model's prediction (Gemma Scope, appendix C.3).

Of one row: y = f * (W_dec grad), the share of each latent in the mean-centred logit of the next token to first order,
p = |y| / sum |y|, and exp(entropy(p)) / ||y||_0. It is 1 where every active latent matters the same and 1 / L0 where
only one does. The mean over probed tokens (`evals.probes`) at which any latent matters.
"""

import torch
from torch import Tensor

from panscope.evals.metrics.base import Metric, over_count
from panscope.evals.outcome import Outcome


def _values(outcome: Outcome) -> Tensor:
    return outcome.ce_clean.new_zeros(0) if outcome.uniformity is None else outcome.uniformity.values


def uniformity(contributions: Tensor) -> Tensor:
    """[Q] of contributions y [Q, F] in float64; NaN where all are 0."""
    share = contributions.abs()
    share = share / share.sum(dim=1, keepdim=True)
    entropy = torch.special.entr(share).sum(dim=1)
    return entropy.exp() / (contributions != 0).sum(dim=1)


UNIFORMITY = Metric("probes", {"uniformity": _values}, over_count("uniformity"))
