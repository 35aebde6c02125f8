"""All metrics of one coder together, site by site."""

from typing import Any

from panscope.coders.wiring import Wiring
from panscope.evals.metrics import METRICS
from panscope.evals.metrics.base import Metric, Number
from panscope.evals.metrics.firing import Firing
from panscope.evals.outcome import Outcome
from panscope.types import Site


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

    def add_firings_to(self, whole: Firing) -> None:
        """Let `whole` take in how often each latent fired."""
        firing = self._metrics["firing"]
        assert isinstance(firing, Firing)
        whole.merge(firing)

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


class SiteTallies:
    """A tally for each site that one coder predicts."""

    def __init__(self, wiring: Wiring) -> None:
        self._stacks = wiring.stacks
        self._sites = {site: Tally() for site in wiring.predicts}

    def update(self, site: Site, outcome: Outcome) -> None:
        """Take in one more batch at one site."""
        self._sites[site].update(outcome)

    def result(self) -> dict[str, Any]:
        """Every number under its name in eval.json.

        Of a coder with several sites: the mean over sites of each (Multi-Layer SAE, B.1), and under `sites` those of
        each one. A multilayer coder's latent is dead only if it fires at no layer.
        """
        results = {str(site): tally.result() for site, tally in self._sites.items()}
        first, *others = results.values()
        if not others:
            return dict(first)
        whole: dict[str, Any] = {name: _mean([one[name] for one in results.values()]) for name in first}
        if self._stacks > 1:
            firing = Firing()
            for tally in self._sites.values():
                tally.add_firings_to(firing)
            window = whole["dead_window"]  # tokens, as in training, and not rows of all layers
            whole |= firing.result() | {"dead_window": window}
        return whole | {"sites": results}


def _mean(numbers: list[Number]) -> Number:
    """Equal counts stay whole numbers."""
    return numbers[0] if len(set(numbers)) == 1 else sum(numbers) / len(numbers)
