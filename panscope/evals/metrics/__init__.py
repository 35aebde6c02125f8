"""The metrics: one file each, and the table of them. Their docstrings hold every formula with its source."""

from panscope.evals.metrics.base import Metric
from panscope.evals.metrics.cosine import Cosine
from panscope.evals.metrics.firing import Firing
from panscope.evals.metrics.fvu import FractionOfVarianceUnexplained
from panscope.evals.metrics.kl import Divergence
from panscope.evals.metrics.losses import Losses
from panscope.evals.metrics.mse import MeanSquaredError
from panscope.evals.metrics.sparsity import Sparsity
from panscope.evals.metrics.tokens import Tokens
from panscope.evals.metrics.uncentred import UncentredExplainedVariance

METRICS: dict[str, type[Metric]] = {
    "tokens": Tokens,
    "sparsity": Sparsity,
    "mse": MeanSquaredError,
    "fvu": FractionOfVarianceUnexplained,
    "uncentred": UncentredExplainedVariance,
    "cosine": Cosine,
    "losses": Losses,
    "kl": Divergence,
    "firing": Firing,
}
"""Every metric, in the order of the fields of eval.json."""
