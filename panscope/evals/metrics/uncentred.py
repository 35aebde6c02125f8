"""`ev_uncentered`: 1 - sum ||y - y_hat||^2 / sum ||y||^2, Llama Scope's explained variance (its Eq. 6).

It is never below `explained_variance`, and well above it where the site's mean is far from 0, so the two must not be
compared with each other. Here it is a ratio of sums over all rows.
"""

from panscope.evals.metrics.base import Additive, Number, Sums, ratio
from panscope.evals.outcome import Outcome


class UncentredExplainedVariance(Additive):
    """Error over the plain size of the rows."""

    def measure(self, outcome: Outcome) -> Sums:
        """Squared error and squared size."""
        return {"error": (outcome.y - outcome.y_hat).square().sum(), "size": outcome.y.square().sum()}

    def summary(self, sums: Sums) -> dict[str, Number]:
        """`ev_uncentered`; NaN where all rows are 0."""
        return {"ev_uncentered": 1 - ratio(sums["error"], sums["size"])}
