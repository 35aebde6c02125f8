"""Where a trainer stands in one slice: which windows of its present epoch it has given whole, and which in part.

Shape letters: N windows of the slice.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panscope.serving.protocol import bits, from_bits


@dataclass
class TrainerProgress:
    """Changes only by `give`."""

    windows: int
    """N."""
    epoch: int = 0
    had: NDArray[np.bool_] = field(init=False)
    """[N] given whole."""
    partial: dict[int, int] = field(default_factory=dict)
    """Of windows that were begun: how many rows were given."""
    last: int = 0
    """The epoch of the row that was given last."""

    def __post_init__(self) -> None:
        self.had = np.zeros(self.windows, dtype=np.bool_)

    def give(self, window: int, upto: int, *, whole: bool) -> None:
        """The rows of a window have been given up to there; after the last window the next epoch begins."""
        assert not self.had[window], f"window {window} was given twice in epoch {self.epoch}"
        self.last = self.epoch
        if not whole:
            self.partial[window] = upto
            return
        self.partial.pop(window, None)
        self.had[window] = True
        if self.had.all():
            self.epoch, self.had = self.epoch + 1, np.zeros_like(self.had)

    def state_dict(self) -> dict[str, Any]:
        """As JSON values."""
        partial = {str(window): rows for window, rows in self.partial.items()}
        return {
            "windows": self.windows,
            "epoch": self.epoch,
            "had": bits(self.had),
            "partial": partial,
            "last": self.last,
        }

    @classmethod
    def of(cls, state: dict[str, Any]) -> "TrainerProgress":
        """Undo `state_dict`."""
        partial = {int(window): rows for window, rows in state["partial"].items()}
        standing = cls(state["windows"], state["epoch"], partial, state["last"])
        standing.had = from_bits(state["had"], standing.windows)
        return standing
