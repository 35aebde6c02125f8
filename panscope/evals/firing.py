"""How often each latent fires: the frequencies behind dead, dense and never-fired shares, and their histogram.

A latent fires on a row where its value is above 0. Over the evaluation set of `dead_window` tokens (Gemma Scope section
4.4 takes 20,000 sequences of 1,024 tokens; Llama Scope section 4.3 takes 100,000 tokens), with c_i firings of latent i:

- dead_fraction = share of latents with c_i = 0. Whether a latent is dead depends on how long one looks, so the window
  is given beside it.
- never_fired[N] = share that never fired in the first N tokens, for the windows in the papers: Llama Scope's inactive
  latents are those of N = 100,000, Gao et al.'s and the Multi-Layer SAE's dead ones those of N = 10,000,000.
- dense_fraction = share with frequency above 0.1: Llama Scope's ultra-active ones, SAEBench's freq_over_10_percent.
- frequency: how many latents fall in each eighth of a decade of frequency (Gemma Scope, Figure 5; Llama Scope, Figure
  4); those that never fired are counted apart, as a logarithm has no place for them.

Intervals are about the shares in another text as long. They take sequences as drawn independently and latents as
independent of each other. For dead_fraction, the variance of how many never fired is at most how many one expects to
fire in exactly one sequence (Efron and Stein 1981), so that number is taken; putting each latent's own frequency into
the binomial formula would make the intervals a third too short. For dense_fraction, a latent's frequency has the
variance of a mean over sequences, which gives it a probability p of being above the line, and the variance of the
number of dense latents is the sum of p (1 - p).

Shape letters: F latents, W windows.
"""

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from panscope.evals.moments import QUANTILE_95
from panscope.evals.outcome import Outcome

DENSE_ABOVE = 0.1
"""Firing frequency above which a latent is dense."""
WINDOWS = (10_000, 100_000, 1_000_000, 10_000_000)
"""Tokens of the windows of `never_fired`."""
DECADES, PARTS = 7, 8
"""The histogram reaches from 10^-7 to 1, with so many bars a decade."""


class Firing:
    """Counts for each latent, however long the text; parts of a text merge."""

    def __init__(self, width: int) -> None:
        self._of = {
            "firings": torch.zeros(width, dtype=torch.int64),
            "squares": torch.zeros(width, dtype=torch.float64),
            "sequences": torch.zeros(width, dtype=torch.int64),
            "in_windows": torch.zeros(len(WINDOWS), width, dtype=torch.int64),
            "values": torch.zeros(width, dtype=torch.float64),
            "totals": torch.zeros(3, dtype=torch.int64),
        }
        self._max = torch.zeros(width, dtype=torch.float64)

    @property
    def tokens(self) -> int:
        """How many tokens were looked at."""
        return int(self._of["totals"][0])

    @property
    def _rows(self) -> int:
        """How many rows these were: one a token, or one a token and layer."""
        return int(self._of["totals"][1])

    def update(self, outcome: Outcome) -> None:
        """Take in one more batch."""
        latents, span = outcome.latents, outcome.span
        fired = (latents.values > 0).float()  # counts far below 2^24, in no more memory than the values
        per_sequence = latents.over_groups(fired, span.rows.sequences, span.sequences)
        firings = per_sequence.sum(dim=0).long()
        rows, sequences = len(outcome.y), int(span.rows.sequences.unique().numel())
        more = {
            "firings": firings,
            "squares": per_sequence.double().square().sum(dim=0),
            "sequences": (per_sequence > 0).sum(dim=0),
            "in_windows": torch.stack([_among_first(outcome, window, firings) for window in WINDOWS]),
            "values": latents.totals(),
            "totals": torch.tensor([rows, rows, sequences]),
        }
        for name, value in more.items():
            self._of[name] += value.cpu()
        self._max = torch.maximum(self._max, latents.largest().double().cpu())

    def merge(self, other: Self) -> None:
        """Add the counts of `other`, of other text."""
        for name, value in other._of.items():
            self._of[name] += value
        self._max = torch.maximum(self._max, other._max)

    def merge_rows(self, other: Self) -> None:
        """Take in what `other` has taken in of the same tokens in other rows: those of another layer.

        Frequencies are then over the rows of all layers. In how many sequences a latent fired at one layer or another
        is not known, nor how its counts go together: the bounds are taken that make the intervals wider.
        """
        tokens, rows, sequences = self._of["totals"].tolist()
        kept = {
            "totals": torch.tensor([tokens, rows + other._rows, sequences]),
            "sequences": torch.maximum(self._of["sequences"], other._of["sequences"]),
            "squares": (self._of["squares"].sqrt() + other._of["squares"].sqrt()).square(),
        }
        self.merge(other)
        self._of |= kept

    def state_dict(self) -> dict[str, Tensor]:
        """The counts."""
        return {name: value.clone() for name, value in self._of.items()} | {"max": self._max.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from where `state_dict` was taken."""
        self._of = {name: state[name].clone() for name in self._of}
        self._max = state["max"].clone()

    def result(self) -> dict[str, Any]:
        """Shares, windows and the histogram, as eval.json has them."""
        firings = self._of["firings"]
        return {
            "dead_fraction": _share(firings == 0),
            "dead_window": self.tokens,
            "dense_fraction": _share(self._frequencies() > DENSE_ABOVE),
            "never_fired": {
                str(window): _share(fired == 0)
                for window, fired in zip(WINDOWS, self._of["in_windows"], strict=True)
                if window <= self.tokens
            },
            "frequency": self._histogram(),
        }

    def intervals(self) -> dict[str, list[float]]:
        """95 % intervals of the shares; nothing where there are fewer than 2 sequences."""
        n = int(self._of["totals"][2])
        if n < 2:
            return {}
        excess = self._frequencies() - DENSE_ABOVE
        p = torch.special.ndtr(excess / self._frequency_errors(n).clamp(min=1e-300))
        dead, dense = _share(self._of["firings"] == 0), _share(excess > 0)
        return {
            "dead_fraction": _around(dead, (self._of["sequences"] == 1).double()),
            "dense_fraction": _around(dense, p * (1 - p)),
        }

    def table(self) -> dict[str, Tensor]:
        """[F] a column: firings, sequences in which it fired, frequency, mean of the values where it fires, largest."""
        firings = self._of["firings"]
        return {
            "firings": firings,
            "sequences": self._of["sequences"],
            "frequency": self._frequencies(),
            "mean": torch.where(firings > 0, self._of["values"] / firings.clamp(min=1), torch.nan),
            "max": self._max,
        }

    def _frequencies(self) -> Tensor:
        return self._of["firings"].double() / max(1, self._rows)

    def _frequency_errors(self, n: int) -> Tensor:
        """[F] the standard error of each frequency, from how it differs between sequences."""
        firings = self._of["firings"].double()
        variance = (self._of["squares"].double() - firings.square() / n).clamp(min=0) * n / (n - 1)
        return variance.sqrt() / max(1, self._rows)

    def _histogram(self) -> dict[str, Any]:
        bars = DECADES * PARTS
        edges = [round(-DECADES + bar / PARTS, 3) for bar in range(bars + 1)]
        alive = self._of["firings"] > 0
        place = ((self._frequencies()[alive].log10() + DECADES) * PARTS).floor().long().clamp(0, bars - 1)
        return {
            "log10_edges": edges,
            "latents": torch.bincount(place, minlength=bars).tolist(),
            "never": int((~alive).sum()),
        }


def _among_first(outcome: Outcome, window: int, firings: Tensor) -> Tensor:
    """[F] firings on the rows of a batch that are among the first `window` tokens; `firings` [F] are those of all."""
    inside = window - outcome.span.first_row
    if inside >= len(outcome.y):
        return firings
    return outcome.latents.select(slice(0, max(0, inside))).firings()


def _share(chosen: Tensor) -> float:
    return float(chosen.double().mean())


def _around(share: float, variances: Tensor) -> list[float]:
    """Both ends of a share's interval, from each latent's part [F] in the variance of their number."""
    half = QUANTILE_95 * math.sqrt(float(variances.sum())) / len(variances)
    return [max(0.0, share - half), min(1.0, share + half)]
