"""The metrics: one file each, and the table of them. Their docstrings hold every formula with its source."""

from panscope.evals.metrics.base import Metric
from panscope.evals.metrics.cosine import COSINE
from panscope.evals.metrics.estimators import ESTIMATORS
from panscope.evals.metrics.fvu import FVU
from panscope.evals.metrics.kl import KL, KL_PER_SEQUENCE
from panscope.evals.metrics.losses import LOSSES
from panscope.evals.metrics.mse import MSE
from panscope.evals.metrics.shrinkage import SHRINKAGE
from panscope.evals.metrics.sparsity import SPARSITY
from panscope.evals.metrics.uniformity import UNIFORMITY

METRICS: dict[str, Metric] = {
    "sparsity": SPARSITY,
    "mse": MSE,
    "fvu": FVU,
    "estimators": ESTIMATORS,
    "cosine": COSINE,
    "shrinkage": SHRINKAGE,
    "losses": LOSSES,
    "kl": KL,
    "kl_per_sequence": KL_PER_SEQUENCE,
    "uniformity": UNIFORMITY,
}
"""Every metric, in the order of the fields of eval.json."""
