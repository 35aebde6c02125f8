"""The metrics: one file each, and the table of them. Their docstrings hold every formula with its source.

Other packages add theirs by entry points; those are measured where a suite or a request names them.
"""

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
from panscope.extensions import extension, names_of, wrong_kind
from panscope.types import UserError

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


def metric_named(name: str) -> Metric:
    """A metric of another package's entry point; raises UserError naming those that there are."""
    if name in METRICS:
        raise UserError(f"metrics has {name!r}, which is always measured: leave it out")
    found = extension("metrics", name)
    if found is None:
        have = ", ".join(names_of("metrics")) or "no installed package offers one"
        raise UserError(f"metrics has {name!r}, which no installed package offers: {have}")
    if not isinstance(found, Metric):
        raise wrong_kind("metrics", name, "a panscope.evals.metrics.base.Metric")
    return found
