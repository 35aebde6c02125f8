"""The two halves of a shuffle: rows read from a source as one long line, and a buffer they are put into.

Shape letters: B rows, D width of a site, C capacity of the buffer.
"""

from typing import Any

import torch
from torch import Tensor

from panscope.activations.source import RowSource
from panscope.types import ActivationBatch, Site


class RowStream:
    """The rows of a source, any number at a time.

    It stands at a row: the state of the source before the pass that holds the row, and how many rows of that pass come
    before it. So a checkpoint holds no rows, and loading one runs that pass again.
    """

    def __init__(self, source: RowSource):
        self._source = source
        self._before = source.state_dict()
        self._pass: ActivationBatch | None = None
        self._skip = 0

    def take(self, rows: int) -> ActivationBatch | None:
        """The next rows, at most `rows` and at most what one pass has left; None where the source has ended."""
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
        """Which row comes next."""
        if self._pass is not None and self._skip == len(self._pass):
            return {"source": self._source.state_dict(), "skip": 0}
        return {"source": self._before, "skip": self._skip}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand at the row of `state`."""
        self._source.load_state_dict(state["source"])
        self._before, self._skip, self._pass = state["source"], state["skip"], None


class RowBuffer:
    """Room for C rows on one device, allocated at the first write and never again."""

    def __init__(self, capacity: int, device: torch.device):
        self._capacity, self._device = capacity, device
        self._columns: dict[str, Tensor] = {}

    def fill(self, places: Tensor, line: RowStream) -> int:
        """Put the next rows of `line` at `places`, [B] int64; returns how many there were, B unless it has ended."""
        filled = 0
        while filled < len(places) and (piece := line.take(len(places) - filled)) is not None:
            self.write(places[filled : filled + len(piece)], _columns(piece))
            filled += len(piece)
            del piece  # lets go of its pass before the next one runs
        return filled

    def write(self, places: Tensor, columns: dict[str, Tensor]) -> None:
        """Put the B rows of `columns`, as `export` gives them, at `places`, [B] int64."""
        places = places.to(self._device)
        for name, x in columns.items():
            if name not in self._columns:
                self._columns[name] = torch.empty(self._capacity, *x.shape[1:], dtype=x.dtype, device=self._device)
            self._columns[name].index_copy_(0, places, x.to(self._device))

    def read(self, places: Tensor) -> ActivationBatch:
        """Copies of the rows at `places`, [B] int64, in that order."""
        places = places.to(self._device)
        columns = {name: x.index_select(0, places) for name, x in self._columns.items()}
        token_ids, document_ids, positions = (columns.pop(name) for name in _PROVENANCE)
        return ActivationBatch({Site.parse(name): x for name, x in columns.items()}, token_ids, document_ids, positions)

    def export(self, places: Tensor) -> dict[str, Tensor]:
        """Copies on the CPU of the rows at `places`, a column a key: for a checkpoint."""
        places = places.to(self._device)
        return {name: x.index_select(0, places).cpu() for name, x in self._columns.items()}


_PROVENANCE = ("token_ids", "document_ids", "positions")


def _columns(batch: ActivationBatch) -> dict[str, Tensor]:
    """Every column under its name; a site's name has a dot, so no two are the same."""
    provenance = zip(_PROVENANCE, (batch.token_ids, batch.document_ids, batch.positions), strict=True)
    return {str(site): x for site, x in batch.rows.items()} | dict(provenance)
