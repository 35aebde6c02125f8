"""The two parts of a shuffle: a source's rows as one stream, and a buffer of rows with random access.

Shape letters: B rows, D width of a site, C capacity of the buffer.
"""

from typing import Any

import torch
from torch import Tensor

from panscope.activations.source import RowSource
from panscope.types import ActivationBatch, Site


class RowStream:
    """The rows of a source as a stream, from which any number can be taken.

    Its position is the state of the source before the current pass, and the number of rows taken from that pass. So a
    checkpoint contains no rows, and loading one repeats that pass.
    """

    def __init__(self, source: RowSource) -> None:
        self._source = source
        self._before = source.state_dict()
        self._pass: ActivationBatch | None = None
        self._skip = 0

    def take(self, rows: int) -> ActivationBatch | None:
        """The next rows, at most `rows` and at most the rest of the pass; None if the source is exhausted."""
        while self._pass is None or self._skip == len(self._pass):
            if self._pass is not None:
                self._before, self._skip, self._pass = self._source.state_dict(), 0, None
            following = next(self._source, None)
            if following is None:
                return None
            self._pass = following
        piece = self._pass.select(slice(self._skip, self._skip + rows))
        self._skip += len(piece)
        return piece

    def state_dict(self) -> dict[str, Any]:
        """The position of the next row."""
        if self._pass is not None and self._skip == len(self._pass):
            return {"source": self._source.state_dict(), "skip": 0}
        return {"source": self._before, "skip": self._skip}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position `state`."""
        self._source.load_state_dict(state["source"])
        self._before, self._skip, self._pass = state["source"], state["skip"], None


class RowBuffer:
    """A buffer of C rows on one device, allocated once at the first write."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self._capacity, self._device = capacity, device
        self._columns: dict[str, Tensor] = {}

    def fill(self, slots: Tensor, stream: RowStream) -> int:
        """Write the next rows of `stream` to `slots`, [B] int64; returns how many, fewer than B only at its end."""
        filled = 0
        while filled < len(slots) and (piece := stream.take(len(slots) - filled)) is not None:
            self.write(slots[filled : filled + len(piece)], _columns(piece))
            filled += len(piece)
            del piece  # frees its pass before the next one runs
        return filled

    def write(self, slots: Tensor, columns: dict[str, Tensor]) -> None:
        """Write the B rows of `columns`, in the format of `export`, to `slots`, [B] int64."""
        slots = slots.to(self._device)
        for name, x in columns.items():
            if name not in self._columns:
                self._columns[name] = torch.empty(self._capacity, *x.shape[1:], dtype=x.dtype, device=self._device)
            self._columns[name].index_copy_(0, slots, x.to(self._device))

    def read(self, slots: Tensor) -> ActivationBatch:
        """Copies of the rows in `slots`, [B] int64, in that order."""
        slots = slots.to(self._device)
        columns = {name: x.index_select(0, slots) for name, x in self._columns.items()}
        token_ids, document_ids, positions = (columns.pop(name) for name in _TOKEN_FIELDS)
        return ActivationBatch({Site.parse(name): x for name, x in columns.items()}, token_ids, document_ids, positions)

    def export(self, slots: Tensor) -> dict[str, Tensor]:
        """CPU copies of the rows in `slots`, [B] int64, as one tensor per column name; for a checkpoint."""
        slots = slots.to(self._device)
        return {name: x.index_select(0, slots).cpu() for name, x in self._columns.items()}


_TOKEN_FIELDS = ("token_ids", "document_ids", "positions")


def _columns(batch: ActivationBatch) -> dict[str, Tensor]:
    """All columns by name; site names contain a dot, so they cannot collide with the token fields."""
    token_fields = zip(_TOKEN_FIELDS, (batch.token_ids, batch.document_ids, batch.positions), strict=True)
    return {str(site): x for site, x in batch.rows.items()} | dict(token_fields)
