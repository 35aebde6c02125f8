"""`fvu` and `explained_variance`: the share of the variance that the coder misses, and the share it catches.

fvu = sum ||y - y_hat||^2 / sum ||y - mean(y)||^2 and explained_variance = 1 - fvu. Both sums run over all rows, and the
mean is over the whole evaluation set, not over a batch: the coder's loss against that of always predicting the mean
(Gemma Scope section 4.1). Averaging a ratio per token or per batch, as other tools do, gives other numbers.

The sum of squares about the mean is streamed and merged by the pairwise update of Chan, Golub and LeVeque (1979): with
parts a and b, M = M_a + M_b + ||mean_b - mean_a||^2 n_a n_b / (n_a + n_b). Subtracting n ||mean||^2 from sum ||y||^2
would cancel nearly every digit where the mean is large, as it is in residual streams.
"""

from panscope.evals.metrics.base import Metric, Number, Sums, count, ratio
from panscope.evals.outcome import Outcome


class FractionOfVarianceUnexplained(Metric):
    """Error over variance, both over the whole evaluation set."""

    def measure(self, outcome: Outcome) -> Sums:
        """Squared error, rows, mean [E] and sum of squares about that mean."""
        rows = count(outcome.y)
        mean = outcome.y.sum(dim=0) / rows.clamp(min=1)
        return {
            "error": (outcome.y - outcome.y_hat).square().sum(),
            "rows": rows,
            "mean": mean,
            "scatter": (outcome.y - mean).square().sum(),
        }

    def join(self, one: Sums, other: Sums) -> Sums:
        """Chan's update."""
        rows = one["rows"] + other["rows"]
        apart = other["mean"] - one["mean"]
        share = other["rows"] / rows.clamp(min=1).double()
        return {
            "error": one["error"] + other["error"],
            "rows": rows,
            "mean": one["mean"] + apart * share,
            "scatter": one["scatter"] + other["scatter"] + apart.square().sum() * one["rows"] * share,
        }

    def summary(self, sums: Sums) -> dict[str, Number]:
        """`fvu` and `explained_variance`; NaN where all rows are equal."""
        fvu = ratio(sums["error"], sums["scatter"])
        return {"fvu": fvu, "explained_variance": 1 - fvu}
