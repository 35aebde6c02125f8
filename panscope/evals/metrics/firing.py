"""`dead_fraction`, `dead_window` and `dense_fraction`: latents that never fire, and latents that fire too often.

With c_i the number of rows where latent i is above 0: dead_fraction = share of latents with c_i = 0, dense_fraction =
share with c_i / rows > 0.1. Whether a latent is dead depends on how long one looks, so the window in tokens,
`dead_window`, stands beside it: here it is the evaluation set. The frequencies are those of Gemma Scope's Figure 5
histogram; SAEBench draws the same line at 0.1 (its freq_over_10_percent).

Shape letters: F latents.
"""

from panscope.evals.metrics.base import Additive, Number, Sums, count, ratio
from panscope.evals.outcome import Outcome

DENSE_ABOVE = 0.1
"""Firing frequency above which a latent is dense."""


class Firing(Additive):
    """How often each latent fires: one count a latent, however long the text."""

    def measure(self, outcome: Outcome) -> Sums:
        """Firings [F] and rows."""
        return {"firings": outcome.latents.firings(), "rows": count(outcome.y)}

    def summary(self, sums: Sums) -> dict[str, Number]:
        """`dead_fraction`, `dead_window`, `dense_fraction`."""
        firings, rows = sums["firings"], sums["rows"]
        dense = firings.double() / rows > DENSE_ABOVE
        return {
            "dead_fraction": ratio((firings == 0).sum(), len(firings)),
            "dead_window": int(rows),
            "dense_fraction": ratio(dense.sum(), len(firings)),
        }
