"""Rows of a store as a source of training batches: every row once per epoch, in an order determined by a seed.

A reader's position is the number of batches it has returned. A batch may span several windows and two epochs. While the
rows of one window are used, another thread reads the next one into memory and verifies it.

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
        self._returned = 0
        self._reader = ThreadPoolExecutor(1, "panscope-store")
        self._prefetched: dict[tuple[int, int], Future[Tensor]] = {}
        self._start_epoch(0)

    @property
    def epoch(self) -> int:
        """The epoch of the last row of the last batch, from 0."""
        return max(0, self._returned * self._batch - 1) // self._windows.rows

    def __iter__(self) -> "StoredRows":
        return self

    def __next__(self) -> ActivationBatch:
        """The next batch; raises UserError if the files of its rows are damaged."""
        pieces = [self._take(index) for index in self._rows(self._returned * self._batch, self._batch)]
        self._returned += 1
        *rows, tokens = pieces[0] if len(pieces) == 1 else map(torch.cat, zip(*pieces, strict=True))
        return ActivationBatch(dict(zip(self._sites, rows, strict=True)), *tokens.unbind(dim=1))

    def _take(self, index: Tensor) -> list[Tensor]:
        """[n, D] per column: the rows at `index`, which must be in the current window."""
        return [rows.to(self.device) for rows in self._store.take_all(self._columns, index)]

    def _rows(self, position: int, count: int) -> Iterator[Tensor]:
        """Row numbers of the `count` rows from `position` on, counted over all epochs; one tensor per window."""
        while count:
            epoch, within = divmod(position, self._windows.rows)
            if epoch != self._epoch:
                self._start_epoch(epoch)
            visit = int(torch.searchsorted(self._ends, within, right=True))
            order = self._open_window(visit)
            left = int(self._ends[visit]) - within
            piece = order[len(order) - left :][:count]
            yield piece
            position, count = position + len(piece), count - len(piece)

    def _start_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._order = self._windows.order(self._seed, epoch).tolist()
        self._ends = torch.tensor([self._windows.bounds(window)[1] for window in self._order]).cumsum(0)
        self._visit: int | None = None

    def _open_window(self, visit: int) -> Tensor:
        """Wait for the epoch's visit-th window and prefetch the next one; the window's row numbers in their order."""
        if visit != self._visit:
            self._shuffled = self._prefetch(self._epoch, visit).result()
            self._visit = visit
            self._store.keep_only(*self._windows.bounds(self._order[visit]))
            if visit + 1 < len(self._order):
                self._prefetch(self._epoch, visit + 1)
            else:
                self._prefetch(self._epoch + 1, 0)
        return self._shuffled

    def _prefetch(self, epoch: int, visit: int) -> Future[Tensor]:
        """Start to read a window if not done before; forgets earlier windows and returns the future of `_fetch`."""
        key = (epoch, visit)
        self._prefetched = {known: future for known, future in self._prefetched.items() if known >= key}
        if key not in self._prefetched:
            order = self._order if epoch == self._epoch else self._windows.order(self._seed, epoch).tolist()
            self._prefetched[key] = self._reader.submit(self._fetch, epoch, order[visit])
        return self._prefetched[key]

    def _fetch(self, epoch: int, window: int) -> Tensor:
        """Read a window into memory and verify it; its row numbers in their order."""
        first, count = self._windows.bounds(window)
        self._store.fetch_ahead(self._columns, first, count)
        return first + self._windows.permutation(self._seed, epoch, window)

    def state_dict(self) -> dict[str, Any]:
        """The number of batches returned, and what determines them."""
        return {"given": self._returned, **self._shape()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after `state`; raises UserError if it is from another store, order or batch size."""
        for name, now in self._shape().items():
            if (was := state.get(name)) != now:
                raise UserError(
                    f"the checkpoint was written with {name} = {was!r} of its store, and now it is {now!r}: "
                    "give the same store and the same [activations] and train.batch, or start a new run"
                )
        self._returned = state["given"]
        self._prefetched, self._visit = {}, None  # Shards released meanwhile must be verified again.

    def _shape(self) -> dict[str, Any]:
        windows = self._windows
        return {
            "batch": self._batch,
            "seed": self._seed,
            "rows": [windows.first, windows.end],
            "window_rows": windows.window_rows,
            "store": self._store.manifest.identity,
        }
