"""`kl`: how far the coder moves the model's predictions, KL(clean || spliced) in nats, mean per predicted token.

At each predicted token it is sum_v p(v) (log p(v) - log q(v)), with p the untouched model's distribution over the
vocabulary and q that of the model with the reconstruction in place (SAEBench, core metrics). Unlike delta_loss it
cannot cancel between tokens.
"""

from panscope.evals.metrics.base import Additive, Number, Sums, count, ratio
from panscope.evals.outcome import Outcome


class Divergence(Additive):
    """Mean divergence of the spliced model's predictions from the clean ones."""

    def measure(self, outcome: Outcome) -> Sums:
        """Divergences and predicted tokens."""
        return {"kl": outcome.kl.sum(), "predicted": count(outcome.kl)}

    def summary(self, sums: Sums) -> dict[str, Number]:
        """`kl`."""
        return {"kl": ratio(sums["kl"], sums["predicted"])}
