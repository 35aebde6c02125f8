"""What a metric is: quantities of single tokens, and numbers that are smooth functions of their sums.

Everything else is written once for all metrics. Sums over tokens add, so parts of a text merge
into the whole; the same sums over the tokens of one position or one subset give the same numbers there; and how much
the sums differ between sequences gives every number its interval (`evals.moments`).

Shape letters: M tokens (B rows, P predicted or Q probed ones), G any shape of groups of tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from panscope.evals.outcome import Outcome

Sums = Mapping[str, Tensor]
"""[G] float64 each: the sums of a metric's quantities; `count`, how many tokens they are over; `sequences`, over how
many sequences."""
Numbers = dict[str, Tensor]
"""[G] float64 each, under their names in eval.json; NaN where a number is undefined."""
Over = Literal["rows", "predictions", "probes"]
"""Which tokens a metric is about."""


@dataclass(frozen=True)
class Metric:
    """One metric, or a few that come from the same sums."""

    over: Over
    quantities: Mapping[str, Callable[[Outcome], Tensor]]
    """Each gives one number a token, [M]."""
    numbers: Callable[[Sums], Numbers]
    """The numbers that follow from the sums."""
    by_position: bool = False
    """Whether it is also kept for each position."""


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """[G] the quotient; NaN where the denominator is 0 and the quotient has no meaning."""
    defined = denominator != 0
    return torch.where(defined, numerator / torch.where(defined, denominator, 1), torch.nan)


def over_count(name: str) -> Callable[[Sums], Numbers]:
    """The metric that is the mean over tokens of its one quantity, which has the metric's name."""
    return lambda sums: {name: ratio(sums[name], sums["count"])}
