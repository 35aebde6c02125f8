"""The gradient of a step whose rows are processed in parts, one after another, so that its memory is bounded.

Gradients add up in the parameters (dense) or in the sums that `SparseOps` keeps (sparse); quantities of the whole batch
come from `ops.batch`. The result is that of the whole batch, to rounding.

Shape letters: B rows of the batch, F latents.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import Tensor

from panscope.coders.base import Objective
from panscope.ops.base import Rows
from panscope.ops.batch import BatchInParts, PartOfBatch, Unknown
from panscope.types import Once


@dataclass(frozen=True)
class StepSums:
    """What metrics need of a step, summed over its rows."""

    loss: Tensor
    """[]."""
    rows: int
    error: Tensor
    """[] float64 the squared distances of reconstructions from targets."""
    active: Tensor
    """[] int64 the number of active latents."""
    firings: Tensor
    """[F] int64 on how many rows each latent is above `active_above`."""
    least: Tensor | None
    """[] as in `Objective`."""

    @classmethod
    def of(cls, found: Objective, active_above: float) -> "StepSums":
        """The sums of one part."""
        return cls(
            found.loss.detach(),
            len(found.errors),
            found.errors.sum(dtype=torch.float64),
            (found.latents.values > 0).sum(),
            found.latents.firings(active_above),
            found.least,
        )

    def __add__(self, other: "StepSums") -> "StepSums":
        return StepSums(
            self.loss + other.loss,
            self.rows + other.rows,
            self.error + other.error,
            self.active + other.active,
            self.firings + other.firings,
            self.least,
        )


def accumulate(
    rows: Rows,
    parts: int,
    objective: Callable[[Rows], Objective],
    backward: Callable[[Tensor], None],
    active_above: float,
) -> StepSums:
    """Call `backward` with the loss of every one of `parts` equal parts of the rows, one after another."""
    batch = BatchInParts(len(rows.x))
    pieces = _split(rows, parts, batch) if parts > 1 else [lambda: rows]

    def learn(piece: Callable[[], Rows]) -> StepSums:
        while True:
            try:
                found = objective(piece())
                break
            except Unknown:
                batch.collect([lambda each=each: objective(each()) for each in pieces])
        backward(found.loss)
        return StepSums.of(found, active_above)

    return reduce(StepSums.__add__, map(learn, pieces))


def _split(rows: Rows, parts: int, batch: BatchInParts) -> list[Callable[[], Rows]]:
    """What makes each part anew, with nothing in memory that an earlier computation of it left."""
    size = -(-len(rows.x) // parts)

    def part(number: int) -> Rows:
        own = slice(number * size, (number + 1) * size)
        x, y, weights = rows.x[own], rows.y[own], rows.weights[own]
        return Rows(x, y, weights, rows.dead, Once(), PartOfBatch(batch, number, len(x)))

    return [partial(part, number) for number in range(-(-len(rows.x) // size))]
