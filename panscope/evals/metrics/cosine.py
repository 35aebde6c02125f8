"""`cosine`: the mean over rows of y . y_hat / (||y|| ||y_hat||), a usual companion of FVU (SAEBench, core metrics).

It sees direction only, so it shows shrinkage that FVU mixes with wrong directions. A row where y or y_hat is 0 has no
direction and counts as 0.
"""

import torch

from panscope.evals.metrics.base import Additive, Number, Sums, count, ratio
from panscope.evals.outcome import Outcome

SMALLEST_NORM = 1e-100
"""Below this a float64 row is taken for 0."""


class Cosine(Additive):
    """Mean cosine similarity of rows and reconstructions."""

    def measure(self, outcome: Outcome) -> Sums:
        """Cosines and rows."""
        cosines = torch.cosine_similarity(outcome.y, outcome.y_hat, dim=1, eps=SMALLEST_NORM)
        return {"cosines": cosines.sum(), "rows": count(outcome.y)}

    def summary(self, sums: Sums) -> dict[str, Number]:
        """`cosine`."""
        return {"cosine": ratio(sums["cosines"], sums["rows"])}
