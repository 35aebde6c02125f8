"""`tokens`: how many rows were measured, one for every content token (neither special nor padding).

Special tokens are masked out of every average (Gemma Scope section 4: "after masking out special tokens").
"""

from panscope.evals.metrics.base import Additive, Number, Sums, count
from panscope.evals.outcome import Outcome


class Tokens(Additive):
    """The size of the evaluation set."""

    def measure(self, outcome: Outcome) -> Sums:
        """Count rows."""
        return {"rows": count(outcome.y)}

    def summary(self, sums: Sums) -> dict[str, Number]:
        """`tokens`."""
        return {"tokens": int(sums["rows"])}
