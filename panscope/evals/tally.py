"""All metrics of one coder together."""

from typing import Any

from panscope.evals.metrics import METRICS
from panscope.evals.metrics.base import Metric, Number
from panscope.evals.outcome import Outcome


class Tally:
    """One of every metric in the table; parts measured apart merge into the whole."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {name: metric() for name, metric in METRICS.items()}

    def update(self, outcome: Outcome) -> None:
        """Take in one more batch."""
        for metric in self._metrics.values():
            metric.update(outcome)

    def merge(self, other: "Tally") -> None:
        """Take in all that `other` has taken in; `other` stays as it is."""
        for name, metric in self._metrics.items():
            metric.merge(other._metrics[name])

    def result(self) -> dict[str, Number]:
        """Every number under its name in eval.json."""
        return {name: value for metric in self._metrics.values() for name, value in metric.result().items()}

    def state_dict(self) -> dict[str, Any]:
        """Every metric's sums."""
        return {name: metric.state_dict() for name, metric in self._metrics.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        for name, metric in self._metrics.items():
            metric.load_state_dict(state[name])
