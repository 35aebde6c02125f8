"""What a metric is: sums over the outcomes so far, never the rows themselves, so memory does not grow with the text.

Parts measured apart can be merged, in any order and with empty parts, into what one pass over all of it gives. Sums
are float64 or int64 tensors and stay on the device where they were made until `result` is asked for.
"""

import math
from abc import ABC, abstractmethod
from typing import Self

from torch import Tensor

from panscope.evals.outcome import Outcome

Sums = dict[str, Tensor]
"""The named sums of one metric."""
Number = float | int


class Metric(ABC):
    """One metric, or a few that come from the same sums."""

    def __init__(self) -> None:
        self._sums: Sums = {}

    def update(self, outcome: Outcome) -> None:
        """Take in one more batch."""
        self._take(self.measure(outcome))

    def merge(self, other: Self) -> None:
        """Take in all that `other` has taken in; `other` stays as it is."""
        self._take(other._sums)

    def result(self) -> dict[str, Number]:
        """Each number under its name in eval.json, NaN where it is undefined; at least one batch must have come."""
        assert self._sums, "a metric was asked for its result before its first batch"
        return self.summary(self._sums)

    def state_dict(self) -> dict[str, Tensor]:
        """The sums; empty before the first batch."""
        return {name: value.clone() for name, value in self._sums.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from where `state_dict` was taken."""
        self._sums = {name: value.clone() for name, value in state.items()}

    def _take(self, sums: Sums) -> None:
        self._sums = self.join(self._sums, sums) if self._sums and sums else (sums or self._sums)

    @abstractmethod
    def measure(self, outcome: Outcome) -> Sums:
        """The sums of one batch, which may hold no row or no predicted token."""

    @abstractmethod
    def join(self, one: Sums, other: Sums) -> Sums:
        """The sums of two parts together, as new tensors."""

    @abstractmethod
    def summary(self, sums: Sums) -> dict[str, Number]:
        """The numbers that sums stand for."""


class Additive(Metric):
    """A metric whose sums simply add."""

    def join(self, one: Sums, other: Sums) -> Sums:
        """Add them name by name."""
        return {name: one[name] + other[name] for name in one}


def count(column: Tensor) -> Tensor:
    """[] int64: how many entries the first axis of `column` has, on its device."""
    return column.new_tensor(len(column)).long()


def ratio(numerator: Tensor | float, denominator: Tensor | float) -> float:
    """The quotient of two numbers; NaN where the denominator is 0 and the quotient has no meaning."""
    return float(numerator) / float(denominator) if float(denominator) != 0 else math.nan
