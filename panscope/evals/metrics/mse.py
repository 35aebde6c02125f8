"""`mse`: sum ||y - y_hat||^2 / (rows * E), the squared error averaged over rows and over the E dimensions.

It depends on the scale of the site: compare it within one site only. Training losses sum over dimensions instead
(Gemma Scope Eq. 4), which is E times this.
"""

from panscope.evals.metrics.base import Additive, Number, Sums, count, ratio
from panscope.evals.outcome import Outcome


class MeanSquaredError(Additive):
    """Squared error per entry."""

    def measure(self, outcome: Outcome) -> Sums:
        """Squared errors, and how many entries they are over."""
        return {
            "error": (outcome.y - outcome.y_hat).square().sum(),
            "entries": count(outcome.y) * outcome.y.shape[1],
        }

    def summary(self, sums: Sums) -> dict[str, Number]:
        """`mse`."""
        return {"mse": ratio(sums["error"], sums["entries"])}
