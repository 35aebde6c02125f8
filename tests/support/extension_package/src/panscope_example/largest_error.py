"""`largest_error`: the mean over rows of the largest absolute error of a row's dimensions."""

from panscope.evals.metrics.base import Metric, over_count

LARGEST_ERROR = Metric(
    "rows",
    {"largest_error": lambda outcome: (outcome.y - outcome.y_hat).abs().amax(dim=1)},
    over_count("largest_error"),
)
