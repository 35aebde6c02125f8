"""Quantities of a whole batch in losses that are computed on parts of it, one after another (gradient accumulation).

Most terms of a loss are sums over rows, so the gradients of the parts add up to that of the batch. A few are not: the
B K largest scores of BatchTopK, the square of a batch's mean L0, the variance that AuxK divides by. An objective asks
its rows for these. For a batch in one part they are computed on the spot. For several parts, the first part that asks
for an unknown quantity stops with `Unknown`; a pass over all parts without gradients collects it, and the part is
computed again. Each such quantity costs one more forward pass, and the gradient is that of the whole batch.

Shape letters: B rows of the batch, N scores of a part.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

from panscope.kernels import reference


class Unknown(Exception):
    """A quantity of the whole batch has to be collected from all parts first."""


class BatchReductions(Protocol):
    """Reductions over all rows of a batch, seen from one part of it."""

    def size(self, rows: int) -> int:
        """B, where the part has `rows`."""
        ...

    def mean(self, values: Tensor) -> Tensor:
        """[] what the part's rows, with a value each, add to the mean over the batch."""
        ...

    def totals(self, *sums: Tensor) -> tuple[Tensor, ...]:
        """The parts' sums added up; the gradient is that of the part's own sums."""
        ...

    def once(self, value: Tensor) -> Tensor:
        """A term [] of the loss that follows from `totals`: its value is divided among the parts, its gradient is not,
        since each part has only its own share of it."""
        ...

    def largest(self, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Which of the part's scores [N] are positive and among the `count` largest of the batch, as indices, and the
        least score [] that the batch keeps, infinite if it keeps none."""
        ...


class WholeBatch:
    """The reductions of a batch in one part."""

    def size(self, rows: int) -> int:
        """See `BatchReductions`."""
        return rows

    def mean(self, values: Tensor) -> Tensor:
        """See `BatchReductions`."""
        return values.mean()

    def totals(self, *sums: Tensor) -> tuple[Tensor, ...]:
        """See `BatchReductions`."""
        return sums

    def once(self, value: Tensor) -> Tensor:
        """See `BatchReductions`."""
        return value

    def largest(self, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """See `BatchReductions`."""
        return reference.largest(scores, count)


class BatchInParts:
    """The quantities of a batch of `rows` rows that are known so far, in the order in which they are asked for."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._known: list[_Sums | _Largest] = []
        self._pending: _Sums | _Largest | None = None

    def collect(self, parts: Iterable[Callable[[], object]]) -> None:
        """Collect the first unknown quantity; each of `parts` computes its objective until it asks for that."""
        self._pending = None
        with torch.no_grad():
            for compute in parts:
                with suppress(Unknown):
                    compute()
        assert self._pending is not None, "no part asked for an unknown quantity"
        self._known.append(self._pending)
        self._pending = None

    def known(self, number: int) -> "_Sums | _Largest | None":
        """The quantity asked for after `number` others; None if it is unknown."""
        return self._known[number] if number < len(self._known) else None

    def pending(self, empty: "_Sums | _Largest") -> "_Sums | _Largest":
        """The quantity that is being collected, `empty` at first."""
        self._pending = self._pending or empty
        return self._pending


class PartOfBatch:
    """The reductions of part `number`, of so many rows, for one computation of its objective."""

    def __init__(self, batch: BatchInParts, number: int, rows: int) -> None:
        self._batch, self._number, self._rows = batch, number, rows
        self._asked = 0

    def size(self, rows: int) -> int:
        """See `BatchReductions`."""
        return self._batch.rows

    def mean(self, values: Tensor) -> Tensor:
        """See `BatchReductions`."""
        return values.sum() / self._batch.rows

    def totals(self, *sums: Tensor) -> tuple[Tensor, ...]:
        """See `BatchReductions`; raises Unknown."""
        found = self._next()
        if found is None:
            pending = self._batch.pending(_Sums())
            assert isinstance(pending, _Sums)
            pending.add(tuple(own.detach() for own in sums))
            raise Unknown
        assert isinstance(found, _Sums)
        pairs = zip(found.totals, sums, strict=True)
        return tuple(total + (own - own.detach()) if own.requires_grad else total for total, own in pairs)

    def once(self, value: Tensor) -> Tensor:
        """See `BatchReductions`."""
        return value.detach() * (self._rows / self._batch.rows) + (value - value.detach())

    def largest(self, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """See `BatchReductions`; raises Unknown. Of equal scores, as many are kept as if the batch were in one part."""
        found = self._next()
        if found is None:
            pending = self._batch.pending(_Largest(count))
            assert isinstance(pending, _Largest)
            pending.add(self._number, scores.detach())
            raise Unknown
        assert isinstance(found, _Largest)
        return scores.topk(found.kept_of(self._number), sorted=False).indices, reference.least_positive(found.scores)

    def _next(self) -> "_Sums | _Largest | None":
        self._asked += 1
        return self._batch.known(self._asked - 1)


class _Sums:
    """Sums over the parts."""

    def __init__(self) -> None:
        self.totals: tuple[Tensor, ...] = ()

    def add(self, sums: tuple[Tensor, ...]) -> None:
        self.totals = tuple(a + b for a, b in zip(self.totals, sums, strict=True)) if self.totals else sums


class _Largest:
    """The largest scores of all parts, with the part that each is of."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.scores, self._parts = torch.empty(0), torch.empty(0, dtype=torch.int64)

    def add(self, part: int, scores: Tensor) -> None:
        scores = scores.topk(min(self._count, len(scores)), sorted=False).values
        parts = torch.cat([self._parts.to(scores.device), torch.full_like(scores, part, dtype=torch.int64)])
        scores = torch.cat([self.scores.to(scores), scores])
        self.scores, best = scores.topk(min(self._count, len(scores)), sorted=False)
        self._parts = parts[best]

    def kept_of(self, part: int) -> int:
        return int(((self._parts == part) & (self.scores > 0)).sum())
