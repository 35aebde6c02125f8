"""`cosine`: the mean over rows of y . y_hat / (||y|| ||y_hat||), a usual companion of FVU (SAEBench, core metrics).

It sees direction only, so it shows shrinkage that FVU mixes with wrong directions. A row where y or y_hat is 0 has no
direction and counts as 0.
"""

import torch
from torch import Tensor

from panscope.evals.metrics.base import Metric, over_count
from panscope.evals.outcome import Outcome

SMALLEST_NORM = 1e-100
"""Below this a float64 row is taken for 0."""


def _cosines(outcome: Outcome) -> Tensor:
    return torch.cosine_similarity(outcome.y, outcome.y_hat, dim=1, eps=SMALLEST_NORM)


COSINE = Metric("rows", {"cosine": _cosines}, over_count("cosine"), by_position=True)
