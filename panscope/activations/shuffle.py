"""Two methods to shuffle rows of different documents: bucket by bucket, or in a pool that is refilled.

`buckets` (Gemma Scope, section 3.1): about 10^6 rows are collected, shuffled and all returned. `pool` (Llama Scope,
section 4.2): half of the pool is returned, then it is refilled and shuffled again, so that a row may be mixed with much
later ones. Each permutation depends only on the seed and its number, so no random state is saved.

Shape letters: B rows of a batch, C capacity in rows.
"""

from typing import Any

import torch
from torch import Tensor

from panscope.activations.buffer import RowBuffer, RowStream
from panscope.activations.source import RowSource
from panscope.data.order import generator
from panscope.types import ActivationBatch, UserError


class BucketShuffle:
    """An iterator of batches of exactly `batch` rows: every row once, except an incomplete last batch.

    The bucket size is `rows` rounded down to whole batches, so that no rows are left between two buckets. A checkpoint
    contains no rows: loading it fills the bucket from the source again.
    """

    def __init__(self, source: RowSource, *, rows: int, batch: int, seed: int, keep_rest: bool = False) -> None:
        """Shuffle the rows of `source`; with `keep_rest` an incomplete last batch is returned too.

        Raises UserError if `rows` is fewer than `batch`.
        """
        self._capacity = _whole_batches(rows, batch) * batch
        self._keep_rest = keep_rest
        self.device = source.device
        self._stream, self._buffer = RowStream(source), RowBuffer(self._capacity, source.device)
        self._batch, self._seed = batch, seed
        self._start = self._stream.state_dict()
        self._bucket, self._returned = 0, 0
        self._order: Tensor | None = None

    def __iter__(self) -> "BucketShuffle":
        return self

    def __next__(self) -> ActivationBatch:
        """The next batch, on the source's device."""
        order = self._fill_bucket() if self._order is None else self._order
        if self._returned * self._batch == self._capacity:
            self._start = self._stream.state_dict()
            self._bucket, self._returned = self._bucket + 1, 0
            order = self._fill_bucket()
        first = self._returned * self._batch
        if first + (1 if self._keep_rest else self._batch) > len(order):
            raise StopIteration
        self._returned += 1
        return self._buffer.read(order[first : first + self._batch])

    def _fill_bucket(self) -> Tensor:
        """Fill the bucket from the source and return its permutation, [rows] int64."""
        filled = self._buffer.fill(torch.arange(self._capacity), self._stream)
        self._order = _permutation(filled, self._seed, self._bucket)
        return self._order

    def state_dict(self) -> dict[str, Any]:
        """The state of the source at the start of the bucket, and the number of batches returned from it."""
        shape = {"rows": self._capacity, "batch": self._batch}
        return {**shape, "start": self._start, "bucket": self._bucket, "given": self._returned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after `state`; the next batch fills the bucket again. Raises UserError if the sizes differ."""
        _check_shape(state, self._capacity, self._batch)
        self._start, self._bucket, self._returned = state["start"], state["bucket"], state["given"]
        self._stream.load_state_dict(self._start)
        self._order = None


class PoolShuffle:
    """An iterator of batches of exactly `batch` rows: every row once, except an incomplete last batch.

    The pool size is `rows` rounded down to whole batches. A checkpoint contains the rows not yet returned, between half
    and all of the pool. The size of a row is that of its D values per site, plus 24 bytes.
    """

    def __init__(self, source: RowSource, *, rows: int, batch: int, seed: int) -> None:
        """Shuffle the rows of `source`; raises UserError if `rows` is fewer than `batch`."""
        batches = _whole_batches(rows, batch)
        self._capacity = batches * batch
        self._half = (batches + 1) // 2 * batch
        self.device = source.device
        self._stream, self._buffer = RowStream(source), RowBuffer(self._capacity, source.device)
        self._batch, self._seed = batch, seed
        self._round = 0
        self._set_layout(waiting=0, returned=self._half)

    def _set_layout(self, *, waiting: int, returned: int) -> None:
        """Mark the first `waiting` slots as filled in order and the others as empty; `returned` rows in this round."""
        slots = torch.arange(self._capacity)
        self._order, self._empty = slots[:waiting], slots[waiting:]
        self._taken = 0  # of _order
        self._returned = returned

    def __iter__(self) -> "PoolShuffle":
        return self

    def __next__(self) -> ActivationBatch:
        """The next batch, on the source's device."""
        if self._returned >= self._half or len(self._order) - self._taken < self._batch:
            self._refill()
        slots = self._order[self._taken : self._taken + self._batch]
        if len(slots) < self._batch:
            raise StopIteration
        self._taken += self._batch
        self._returned += self._batch
        return self._buffer.read(slots)

    def _refill(self) -> None:
        """Replace returned rows by new ones and shuffle all; the order does not depend on the slots of the rows."""
        free = torch.cat([self._order[: self._taken], self._empty])
        filled = self._buffer.fill(free, self._stream)
        pool = torch.cat([self._order[self._taken :], free[:filled]])
        self._order, self._empty = pool[_permutation(len(pool), self._seed, self._round)], free[filled:]
        self._taken, self._returned = 0, 0
        self._round += 1

    def state_dict(self) -> dict[str, Any]:
        """The rows not yet returned, in order, and the state of the source."""
        waiting = self._order[self._taken :]
        return {
            "rows": self._capacity,
            "batch": self._batch,
            "start": self._stream.state_dict(),
            "round": self._round,
            "given": self._returned,
            "waiting": self._buffer.export(waiting) if len(waiting) else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after `state`; raises UserError if the sizes differ."""
        _check_shape(state, self._capacity, self._batch)
        self._stream.load_state_dict(state["start"])
        self._round = state["round"]
        columns = state["waiting"]
        self._set_layout(waiting=len(columns["token_ids"]) if columns else 0, returned=state["given"])
        self._buffer.write(self._order, columns)


SHUFFLES: dict[str, type[BucketShuffle] | type[PoolShuffle]] = {
    "buckets": BucketShuffle,
    "pool": PoolShuffle,
}


def _whole_batches(rows: int, batch: int) -> int:
    if rows < batch:
        raise UserError(
            f"activations.buffer_rows is {rows}, fewer than one batch of {batch} rows; set it to at least that"
        )
    return rows // batch


def _check_shape(state: dict[str, Any], rows: int, batch: int) -> None:
    if (state["rows"], state["batch"]) != (rows, batch):
        raise UserError(
            f"activations.buffer_rows gives {rows} rows in batches of {batch}, but the checkpoint was written with "
            f"{state['rows']} rows in batches of {state['batch']}; resume with the same values"
        )


def _permutation(rows: int, seed: int, number: int) -> Tensor:
    """[rows] int64, the permutation of the bucket or pool after its `number`-th filling."""
    return torch.from_numpy(generator(seed, number).permutation(rows))
