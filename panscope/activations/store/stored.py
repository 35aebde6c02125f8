"""Rows of a store as a source of training batches: every row of an epoch once, in an order that is a function of seed.

Where a reader stands is one number, the batches it has given. A batch may hold rows of two windows, or of two epochs.
While one window is given, the next one is brought into memory and checked in another thread.

Shape letters: B rows of a batch, D width of a site.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from panscope.activations.store.store import Store
from panscope.activations.store.windows import Windows
from panscope.types import ActivationBatch, Site, UserError


class StoredRows:
    """An endless iterator of batches of exactly `batch` rows."""

    def __init__(
        self,
        store: Store,
        sites: Sequence[Site],
        windows: Windows,
        *,
        batch: int,
        seed: int,
        device: torch.device | None = None,
    ) -> None:
        """Read `sites` of the rows of `windows`; raises UserError if the store lacks one of them."""
        self._store, self._sites, self._windows = store, tuple(sites), windows
        self._columns = store.columns(self._sites)
        self._batch, self._seed = batch, seed
        self.device = device or torch.device("cpu")
        self._given = 0
        self._reader = ThreadPoolExecutor(1, "panscope-store")
        self._ahead: dict[tuple[int, int], Future[Tensor]] = {}
        self._begin_epoch(0)

    @property
    def epoch(self) -> int:
        """Which pass over the rows the last batch ended in, from 0."""
        return max(0, self._given * self._batch - 1) // self._windows.rows

    def __iter__(self) -> "StoredRows":
        return self

    def __next__(self) -> ActivationBatch:
        """The next batch; raises UserError if what it is made of is damaged."""
        pieces = [self._taken(index) for index in self._rows(self._given * self._batch, self._batch)]
        self._given += 1
        *rows, tokens = pieces[0] if len(pieces) == 1 else map(torch.cat, zip(*pieces, strict=True))
        return ActivationBatch(dict(zip(self._sites, rows, strict=True)), *tokens.unbind(dim=1))

    def _taken(self, index: Tensor) -> list[Tensor]:
        """[n, D] a column: the rows at `index`, of one window, while that can be read."""
        return [rows.to(self.device) for rows in self._store.take_all(self._columns, index)]

    def _rows(self, place: int, count: int) -> Iterator[Tensor]:
        """The numbers of `count` rows from the place-th on, counted over all epochs; those of each window together."""
        while count:
            epoch, within = divmod(place, self._windows.rows)
            if epoch != self._epoch:
                self._begin_epoch(epoch)
            visit = int(torch.searchsorted(self._ends, within, right=True))
            order = self._opened(visit)
            left = int(self._ends[visit]) - within
            piece = order[len(order) - left :][:count]
            yield piece
            place, count = place + len(piece), count - len(piece)

    def _begin_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._order = self._windows.order(self._seed, epoch).tolist()
        self._ends = torch.tensor([self._windows.bounds(window)[1] for window in self._order]).cumsum(0)
        self._visit: int | None = None

    def _opened(self, visit: int) -> Tensor:
        """The numbers of the rows of the epoch's visit-th window, in their order, once they can be read."""
        if visit != self._visit:
            self._shuffled = self._fetched(self._epoch, visit).result()
            self._visit = visit
            self._store.keep_only(*self._windows.bounds(self._order[visit]))
            if visit + 1 < len(self._order):
                self._fetched(self._epoch, visit + 1)
            else:
                self._fetched(self._epoch + 1, 0)
        return self._shuffled

    def _fetched(self, epoch: int, visit: int) -> Future[Tensor]:
        """The bringing into memory of a window, begun now if it was not yet; those before it are forgotten."""
        key = (epoch, visit)
        self._ahead = {known: future for known, future in self._ahead.items() if known >= key}
        if key not in self._ahead:
            order = self._order if epoch == self._epoch else self._windows.order(self._seed, epoch).tolist()
            self._ahead[key] = self._reader.submit(self._fetch, epoch, order[visit])
        return self._ahead[key]

    def _fetch(self, epoch: int, window: int) -> Tensor:
        """Have a window brought into memory and checked; the numbers of its rows in their order."""
        first, count = self._windows.bounds(window)
        self._store.fetch_ahead(self._columns, first, count)
        return first + self._windows.permutation(self._seed, epoch, window)

    def state_dict(self) -> dict[str, Any]:
        """How many batches were given, and of what."""
        return {"given": self._given, **self._shape()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after `state`; raises UserError if it is of another store, order or batch."""
        for name, now in self._shape().items():
            if (was := state.get(name)) != now:
                raise UserError(
                    f"the checkpoint was written with {name} = {was!r} of its store, and now it is {now!r}: "
                    "give the same store and the same [activations] and train.batch, or start a new run"
                )
        self._given = state["given"]
        self._ahead, self._visit = {}, None  # What was let go of since must be checked again.

    def _shape(self) -> dict[str, Any]:
        windows = self._windows
        return {
            "batch": self._batch,
            "seed": self._seed,
            "rows": [windows.first, windows.end],
            "window_rows": windows.window_rows,
            "store": self._store.manifest.identity,
        }
