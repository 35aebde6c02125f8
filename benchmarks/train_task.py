"""What both trainers are asked to do, and how fast one did it: TopK coders on three sites of every layer of a model.

The sites are those that both can read: the residual stream after each block, and what attention and the MLP add to it.
A run is a number of windows of steps; the first warms up (compiling, first use of memory, filling buffers), the others
are the steady part.

Shape letters: B rows of a step, T tokens of a sequence, F latents.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SITES = ("resid_post", "attn_out", "mlp_out")
RATE = 1e-3
"""Adam's learning rate."""


@dataclass(frozen=True)
class Task:
    """One training run, the same for every trainer."""

    model: str
    """Folder of a language model in Hugging Face's format."""
    text: tuple[str, ...]
    """Text files."""
    width: int = 4096
    """F."""
    k: int = 32
    """Active latents of a row."""
    context: int = 512
    """T."""
    batch: int = 4096
    """B; whole sequences for a trainer that learns from those, special tokens left out."""
    window: int = 16
    """Steps."""
    windows: int = 4
    """The first of them does not count."""

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.window * self.windows

    @property
    def sequences(self) -> int:
        """In a batch."""
        return max(1, self.batch // self.context)

    def written(self) -> str:
        """As an argument of a process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def read(cls, written: str) -> Self:
        """The task that `written` gave."""
        fields = json.loads(written)
        return cls(**fields | {"text": tuple(fields["text"])})

    def names(self) -> dict[str, str | list[str]]:
        """Model and text without their folders: what results are kept with."""
        return {"model": Path(self.model).name, "text": [Path(text).name for text in self.text]}


@dataclass(frozen=True)
class Window:
    """Some steps one after another."""

    rows: int
    """Tokens learned from, at each site."""
    seconds: float


def tokens_per_second(windows: Sequence[Window]) -> float:
    """Of the steady part: all windows but the first."""
    steady = windows[1:]
    return sum(window.rows for window in steady) / sum(window.seconds for window in steady)


def windows_between(begun: Sequence[float], rows: Sequence[int], steps: int) -> list[Window]:
    """Windows of `steps` steps, from the second at which each step began and the tokens it learned from.

    A step ends where the next begins, so the last one begun is in no window.
    """
    firsts = range(0, len(begun) - steps, steps)
    return [Window(sum(rows[n : n + steps]), begun[n + steps] - begun[n]) for n in firsts]
