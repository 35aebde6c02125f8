"""Synthetic outcomes: what coders might have done to batches, drawn at random, with no language model.

Shape letters: S sequences, T tokens a sequence, B rows, E width, F latents, K codes a row, P predictions.
"""

from dataclasses import replace

import torch
from torch import Tensor

from panscope.evals.accumulator import CoderShape, MetricAccumulator
from panscope.evals.moments import LAYOUT, Moments, by_sequence_and_subset
from panscope.evals.outcome import Losses, Outcome, Span, TokenIndex
from panscope.types import Latents

E, F, K = 3, 12, 4
CENTRE = torch.tensor([5.0, -1.0, 0.0], dtype=torch.float64)


def places(sequences: int, tokens: int) -> TokenIndex:
    """Every token of every sequence, all of one subset."""
    each = torch.arange(sequences).repeat_interleave(tokens)
    return TokenIndex(each, torch.arange(tokens).repeat(sequences), torch.zeros(sequences * tokens, dtype=torch.int64))


def an_outcome(sequences: int = 8, tokens: int = 5, seed: int = 0, first_row: int = 0) -> Outcome:
    """Random rows and losses; sparse codes where some latents fire often, some never and some places are unused.

    The last token of a sequence predicts nothing.
    """
    g = torch.Generator().manual_seed(seed)
    rows, predicted = sequences * tokens, sequences * (tokens - 1)
    y = torch.randn(rows, E, generator=g, dtype=torch.float64) + CENTRE
    weights = torch.linspace(1, 0.001, F).square()
    weights[-2:] = 0
    indices = torch.multinomial(weights.expand(max(rows, 1), F), K, generator=g)[:rows]
    values = torch.rand(rows, K, generator=g) * (torch.rand(rows, K, generator=g) > 0.2)

    def nats(size: float) -> Tensor:
        return size * torch.rand(predicted, generator=g, dtype=torch.float64)

    return Outcome(
        span=Span(first_row, sequences, places(sequences, tokens), places(sequences, tokens - 1)),
        y=y,
        y_hat=y + 0.3 * torch.randn(rows, E, generator=g, dtype=torch.float64),
        centre=CENTRE,
        latents=Latents(values, F, indices),
        ce_clean=nats(1),
        spliced=Losses(nats(1.2), nats(0.1), nats(0.2)),
        zero_ablated=Losses(nats(4), nats(2), nats(2)),
        mean_ablated=Losses(nats(3), nats(2), nats(2)),
    )


def with_rows(y: Tensor, y_hat: Tensor, *, sequences: int = 1, centre: Tensor | None = None) -> Outcome:
    """An outcome of these rows, in sequences of equal length, with losses of no interest."""
    tokens = len(y) // sequences
    plain = an_outcome(sequences, tokens)
    return replace(plain, y=y, y_hat=y_hat, centre=y.mean(dim=0) if centre is None else centre)


def tally_of(outcomes: list[Outcome], positions: int = 64) -> MetricAccumulator:
    tally = MetricAccumulator(CoderShape(positions, ("",), saebench=False), outcomes[0].latents.width)
    for outcome in outcomes:
        tally.update(outcome)
    return tally


def moments_of(outcomes: list[Outcome]) -> Moments:
    moments = Moments()
    for outcome in outcomes:
        moments.add(by_sequence_and_subset(LAYOUT.measured(outcome), outcome.span.sequences, 1)[:, 0])
    return moments
