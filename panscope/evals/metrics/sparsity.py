"""`l0` and `l1`: how many latents are active on a row, and the sum of their values; means over rows.

l0 counts values > 0 (Gemma Scope section 4.1; a TopK coder may have fewer than K). l1 is in raw units of the codes:
decoder norms do not enter, so it is comparable only between coders whose decoders have the same norm.
"""

from panscope.evals.metrics.base import Additive, Number, Sums, count, ratio
from panscope.evals.outcome import Outcome


class Sparsity(Additive):
    """Active latents a row and their total."""

    def measure(self, outcome: Outcome) -> Sums:
        """Active latents, values and rows."""
        return {
            "active": outcome.latents.l0().sum(),
            "values": outcome.latents.l1().double().sum(),
            "rows": count(outcome.y),
        }

    def summary(self, sums: Sums) -> dict[str, Number]:
        """`l0` and `l1`."""
        return {"l0": ratio(sums["active"], sums["rows"]), "l1": ratio(sums["values"], sums["rows"])}
