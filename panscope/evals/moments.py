"""Sums of every metric's quantities over groups of tokens, and how much they differ between sequences.

Tokens of one sequence are alike, so what is drawn independently is the sequence: with c_s the sums over sequence s and
n sequences, the covariance of their total is n / (n - 1) sum_s (c_s - mean)(c_s - mean)^T, and a number g(total) has
the variance grad g . covariance . grad g (the delta method; Deng, Knoblich and Lu 2018 for means of clustered data).
Its 95 % interval is g +- 1.96 sqrt(variance). Both sums merge, so that parts of a text make the whole.

Shape letters: C quantities, S sequences of a batch, M tokens, T positions.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from panscope.evals.metrics import METRICS, metric_named
from panscope.evals.metrics.base import Metric, Numbers, Over, Sums
from panscope.evals.outcome import Outcome, TokenIndex
from panscope.types import UserError

OVERS: tuple[Over, ...] = ("rows", "predictions", "probes")
QUANTILE_95 = 1.959963984540054
"""Of the normal distribution: 95 % of it lies within so many standard deviations."""
ROUNDING = 1e-13
"""What is left of terms in float64 that cancel, as a share of them."""


Measured = list[tuple[slice, TokenIndex, Tensor]]
"""The columns of rows, of predictions and of probes: which they are, of which tokens, and [M, columns] float64."""


class Layout:
    """Which column is which quantity: first of all rows, then of predictions, then of probes, each with its count."""

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self._metrics = metrics
        self._columns: dict[Over, list[tuple[str, str]]] = {
            over: [*_quantities(metrics, over), (over, "count")] for over in OVERS
        }
        every = [column for columns in self._columns.values() for column in columns]
        self.place = {column: number for number, column in enumerate([*every, ("sequences", "count")])}

    @classmethod
    def with_metrics(cls, names: Sequence[str]) -> "Layout":
        """All built-in metrics and these of other packages; raises UserError for one that there is not."""
        if not names:
            return LAYOUT
        others = {name: metric_named(name) for name in names}
        taken = dict.fromkeys(LAYOUT.number_names(), "Panscope")
        for name, metric in others.items():
            for number in cls({name: metric}).number_names():
                if number in taken:
                    raise UserError(
                        f"the metric {name!r} gives {number!r}, which is a number of {taken[number]}: leave it out of "
                        "metrics, or ask its authors to rename it"
                    )
                taken[number] = f"the metric {name!r}"
        return cls(METRICS | others)

    def number_names(self) -> list[str]:
        """The names in eval.json of the numbers it gives."""
        return list(self.numbers(torch.ones(len(self), dtype=torch.float64)))

    @cached_property
    def by_position(self) -> "Layout":
        """The part of it that is also kept for each position."""
        return Layout({name: metric for name, metric in self._metrics.items() if metric.by_position})

    def __len__(self) -> int:
        return len(self.place)

    def measured(self, outcome: Outcome) -> Measured:
        """Every quantity of every token."""
        first, found = 0, []
        for over, columns in self._columns.items():
            some = slice(first, first + len(columns))
            first = some.stop
            places = _places(outcome, over)
            if places is None:
                continue
            values = [self._metrics[metric].quantities[name](outcome).double() for metric, name in columns[:-1]]
            ones = torch.ones_like(places.positions, dtype=torch.float64)
            found.append((some, places, torch.stack([*values, ones], dim=1)))
        return found

    def numbers(self, sums: Tensor) -> Numbers:
        """Every number of sums [..., C], each [...]."""
        return {name: value for metric in self._metrics for name, value in self._of(metric, sums).items()}

    def counts(self, sums: Tensor) -> dict[str, Tensor]:
        """How many tokens, predicted tokens, probed tokens and sequences the sums [..., C] are over, each [...]."""
        names = {
            "tokens": "rows",
            "predicted_tokens": "predictions",
            "probed_tokens": "probes",
            "sequences": "sequences",
        }
        return {name: sums[..., self.place[over, "count"]] for name, over in names.items()}

    def _of(self, name: str, sums: Tensor) -> Numbers:
        metric = self._metrics[name]
        own: Sums = {quantity: sums[..., self.place[name, quantity]] for quantity in metric.quantities}
        common = {"count": (metric.over, "count"), "sequences": ("sequences", "count")}
        return metric.numbers({**own, **{key: sums[..., self.place[column]] for key, column in common.items()}})


def _quantities(metrics: Mapping[str, Metric], over: Over) -> list[tuple[str, str]]:
    return [
        (name, quantity) for name, metric in metrics.items() if metric.over == over for quantity in metric.quantities
    ]


def _places(outcome: Outcome, over: Over) -> TokenIndex | None:
    if over == "rows":
        return outcome.span.rows
    if over == "predictions":
        return outcome.span.predicted
    return None if outcome.uniformity is None else outcome.uniformity.places


LAYOUT = Layout(METRICS)


class Moments:
    """Sums over all tokens of a group, and over its sequences of their products about the mean sequence."""

    def __init__(self, layout: Layout = LAYOUT) -> None:
        self._layout = layout
        self.sums = torch.zeros(len(layout), dtype=torch.float64)
        self._scatter = torch.zeros(len(layout), len(layout), dtype=torch.float64)

    @property
    def _sequences(self) -> float:
        return float(self._layout.counts(self.sums)["sequences"])

    def add(self, by_sequence: Tensor) -> None:
        """Add sequences; `by_sequence` [S, C] are the sums over each, and one without rows is left out."""
        some = by_sequence[by_sequence[:, self._layout.place["sequences", "count"]] > 0]
        if len(some):
            apart = some - some.mean(dim=0)
            self._join(some.sum(dim=0), apart.T @ apart, float(len(some)))

    def merge(self, other: Self) -> None:
        """Add the sums of `other`."""
        if other._sequences:
            self._join(other.sums, other._scatter, other._sequences)

    def _join(self, sums: Tensor, scatter: Tensor, more: float) -> None:
        """Chan's update of products about the mean, which cancel no digits (Chan, Golub and LeVeque 1979)."""
        have = self._sequences
        apart = sums / more - self.sums / max(have, 1)
        self._scatter = self._scatter + scatter + torch.outer(apart, apart) * (have * more / (have + more))
        self.sums = self.sums + sums

    def numbers(self) -> dict[str, float | int]:
        """Every number, and what they are over."""
        counts = {name: int(value) for name, value in self._layout.counts(self.sums).items()}
        return counts | {name: float(value) for name, value in self._layout.numbers(self.sums).items()}

    def intervals(self) -> dict[str, list[float]]:
        """Both ends of every number's 95 % interval; nothing where there are fewer than 2 sequences."""
        n = self._sequences
        if n < 2:
            return {}
        covariance = self._scatter * n / (n - 1)
        sums = self.sums.clone().requires_grad_()
        with torch.enable_grad():
            numbers = self._layout.numbers(sums)
            slopes = {name: torch.autograd.grad(value, sums, retain_graph=True)[0] for name, value in numbers.items()}
        return {name: _interval(float(numbers[name].detach()), slope, covariance) for name, slope in slopes.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The sums."""
        return {"sums": self.sums.clone(), "scatter": self._scatter.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a `state_dict`."""
        self.sums, self._scatter = state["sums"].clone(), state["scatter"].clone()


def _interval(value: float, slope: Tensor, covariance: Tensor) -> list[float]:
    """Both ends; a variance that rounding alone could have left counts as none."""
    variance, terms = slope @ covariance @ slope, slope.abs() @ covariance.abs() @ slope.abs()
    half = QUANTILE_95 * float(variance) ** 0.5 if variance > ROUNDING * terms else 0.0
    return [value - half, value + half]


def by_sequence_and_subset(measured: Measured, sequences: int, subsets: int, layout: Layout = LAYOUT) -> Tensor:
    """[S, subsets, C] float64 on the CPU: the sums over each sequence's tokens of each subset, or all where it is 1."""
    sums = torch.zeros(sequences * subsets, len(layout), dtype=torch.float64)
    for columns, places, values in measured:
        groups = places.sequences * subsets + (places.subsets if subsets > 1 else 0)
        sums[:, columns] = _grouped(values, groups, sequences * subsets).cpu()
    sums[:, layout.place["sequences", "count"]] = (sums[:, layout.place["rows", "count"]] > 0).double()
    return sums.view(sequences, subsets, len(layout))


def by_position(measured: Measured, positions: int, layout: Layout = LAYOUT) -> Tensor:
    """[T, columns of `layout.by_position`] float64 on the CPU."""
    sums = torch.zeros(positions, len(layout), dtype=torch.float64)
    for columns, places, values in measured:
        sums[:, columns] = _grouped(values, places.positions, positions).cpu()
    return sums[:, [layout.place[column] for column in layout.by_position.place]]


def _grouped(values: Tensor, groups: Tensor, n: int) -> Tensor:
    """[n, columns] the sums of values [M, columns] over the tokens of each group [M]."""
    return values.new_zeros(n, values.shape[1]).index_add(0, groups, values)
