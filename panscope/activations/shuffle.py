"""Two ways to mix rows of different documents: one bucket after another, or a pool that is topped up.

`buckets` (Gemma Scope, section 3.1): about 10^6 rows are gathered, shuffled and all handed out. `pool` (Llama Scope,
section 4.2): half of the pool is handed out, then it is filled up and shuffled as a whole, so a row may meet rows that
came long after it. Each order depends on the seed and on how many came before it, so no random state is saved.

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
    """An iterator of batches of exactly `batch` rows; every row once, but for what does not fill the last batch.

    The bucket is `rows` rounded down to whole batches, so no row is left over between two buckets. A checkpoint holds
    no rows: loading it gathers the bucket again from the source.
    """

    def __init__(self, source: RowSource, *, rows: int, batch: int, seed: int, keep_rest: bool = False):
        """Shuffle the rows of `source`; with `keep_rest` the very last batch may be smaller, and no row is lost.

        Raises UserError if `rows` is fewer than `batch`.
        """
        self._capacity = _whole_batches(rows, batch) * batch
        self._keep_rest = keep_rest
        self.device = source.device
        self._line, self._buffer = RowStream(source), RowBuffer(self._capacity, source.device)
        self._batch, self._seed = batch, seed
        self._start = self._line.state_dict()
        self._bucket, self._given = 0, 0
        self._order: Tensor | None = None

    def __iter__(self) -> "BucketShuffle":
        return self

    def __next__(self) -> ActivationBatch:
        """The next batch, on the device of the source's rows."""
        order = self._gather() if self._order is None else self._order
        if self._given * self._batch == self._capacity:
            self._start = self._line.state_dict()
            self._bucket, self._given = self._bucket + 1, 0
            order = self._gather()
        first = self._given * self._batch
        if first + (1 if self._keep_rest else self._batch) > len(order):
            raise StopIteration
        self._given += 1
        return self._buffer.read(order[first : first + self._batch])

    def _gather(self) -> Tensor:
        """Fill the bucket and return its order, [rows] int64."""
        filled = self._buffer.fill(torch.arange(self._capacity), self._line)
        self._order = _permutation(filled, self._seed, self._bucket)
        return self._order

    def state_dict(self) -> dict[str, Any]:
        """Where the bucket began and how much of it was given; no rows."""
        shape = {"rows": self._capacity, "batch": self._batch}
        return {**shape, "start": self._start, "bucket": self._bucket, "given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after `state`: the bucket is gathered again at the next batch. Raises UserError for another shape."""
        _check_shape(state, self._capacity, self._batch)
        self._start, self._bucket, self._given = state["start"], state["bucket"], state["given"]
        self._line.load_state_dict(self._start)
        self._order = None


class PoolShuffle:
    """An iterator of batches of exactly `batch` rows; every row once, but for what does not fill the last batch.

    The pool is `rows` rounded down to whole batches. A checkpoint holds the rows not yet given, between half and all
    of the pool; a row takes the bytes of its D numbers at every site, and 24 more.
    """

    def __init__(self, source: RowSource, *, rows: int, batch: int, seed: int):
        """Shuffle the rows of `source`; raises UserError if `rows` is fewer than `batch`."""
        batches = _whole_batches(rows, batch)
        self._capacity = batches * batch
        self._half = (batches + 1) // 2 * batch
        self.device = source.device
        self._line, self._buffer = RowStream(source), RowBuffer(self._capacity, source.device)
        self._batch, self._seed = batch, seed
        self._round = 0
        self._lay_out(waiting=0, given=self._half)

    def _lay_out(self, *, waiting: int, given: int) -> None:
        """Say where rows are: `waiting` ones in order at the first places, the others empty; `given` in this round."""
        places = torch.arange(self._capacity)
        self._order, self._empty = places[:waiting], places[waiting:]
        self._taken = 0  # of _order
        self._given = given

    def __iter__(self) -> "PoolShuffle":
        return self

    def __next__(self) -> ActivationBatch:
        """The next batch, on the device of the source's rows."""
        if self._given >= self._half or len(self._order) - self._taken < self._batch:
            self._fill_up()
        places = self._order[self._taken : self._taken + self._batch]
        if len(places) < self._batch:
            raise StopIteration
        self._taken += self._batch
        self._given += self._batch
        return self._buffer.read(places)

    def _fill_up(self) -> None:
        """Put new rows where given ones were, and shuffle all; the order does not depend on where they lie."""
        free = torch.cat([self._order[: self._taken], self._empty])
        filled = self._buffer.fill(free, self._line)
        pool = torch.cat([self._order[self._taken :], free[:filled]])
        self._order, self._empty = pool[_permutation(len(pool), self._seed, self._round)], free[filled:]
        self._taken, self._given = 0, 0
        self._round += 1

    def state_dict(self) -> dict[str, Any]:
        """The rows not yet given, in order, and where the source stands."""
        waiting = self._order[self._taken :]
        return {
            "rows": self._capacity,
            "batch": self._batch,
            "start": self._line.state_dict(),
            "round": self._round,
            "given": self._given,
            "waiting": self._buffer.export(waiting) if len(waiting) else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after `state`; raises UserError for another shape."""
        _check_shape(state, self._capacity, self._batch)
        self._line.load_state_dict(state["start"])
        self._round = state["round"]
        columns = state["waiting"]
        self._lay_out(waiting=len(columns["token_ids"]) if columns else 0, given=state["given"])
        self._buffer.write(self._order, columns)


SHUFFLES: dict[str, type[BucketShuffle] | type[PoolShuffle]] = {
    "buckets": BucketShuffle,
    "pool": PoolShuffle,
}


def _whole_batches(rows: int, batch: int) -> int:
    if rows < batch:
        raise UserError(f"activations.buffer_rows is {rows}, fewer than one batch of {batch} rows; hold at least that")
    return rows // batch


def _check_shape(state: dict[str, Any], rows: int, batch: int) -> None:
    if (state["rows"], state["batch"]) != (rows, batch):
        raise UserError(
            f"activations.buffer_rows gives {rows} rows in batches of {batch}, but the checkpoint was written with "
            f"{state['rows']} rows in batches of {state['batch']}; resume with the same"
        )


def _permutation(rows: int, seed: int, number: int) -> Tensor:
    """[rows] int64, the order of the `number`-th filling."""
    return torch.from_numpy(generator(seed, number).permutation(rows))
