"""A trainer's position in one slice: which windows of its current epoch have been used entirely, and which in part.

Shape letters: N windows of the slice.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panscope.serving.protocol import decode_bits, encode_bits


@dataclass
class TrainerProgress:
    """The position in one slice; it changes only by `advance`."""

    windows: int
    """N."""
    epoch: int = 0
    used: NDArray[np.bool_] = field(init=False)
    """[N] windows of which all rows have been used."""
    partial: dict[int, int] = field(default_factory=dict)
    """Partly used windows: how many of their rows have been used."""
    last_epoch: int = 0
    """The epoch of the last used row."""

    def __post_init__(self) -> None:
        self.used = np.zeros(self.windows, dtype=np.bool_)

    def advance(self, window: int, upto: int, *, whole: bool) -> None:
        """Mark the first `upto` rows of a window, or all of it, as used; the last window starts the next epoch."""
        assert not self.used[window], f"window {window} was used twice in epoch {self.epoch}"
        self.last_epoch = self.epoch
        if not whole:
            self.partial[window] = upto
            return
        self.partial.pop(window, None)
        self.used[window] = True
        if self.used.all():
            self.epoch, self.used = self.epoch + 1, np.zeros_like(self.used)

    def state_dict(self) -> dict[str, Any]:
        """The position as JSON values."""
        partial = {str(window): rows for window, rows in self.partial.items()}
        return {
            "windows": self.windows,
            "epoch": self.epoch,
            "had": encode_bits(self.used),
            "partial": partial,
            "last": self.last_epoch,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "TrainerProgress":
        """The inverse of `state_dict`."""
        partial = {int(window): rows for window, rows in state["partial"].items()}
        progress = cls(state["windows"], state["epoch"], partial, state["last"])
        progress.used = decode_bits(state["had"], progress.windows)
        return progress
