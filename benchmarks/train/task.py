"""The training run that both trainers do, and its speed: TopK coders on three sites of every layer of a model.

The sites are those that both can read: the residual stream after each block, and what attention and the MLP add to it.
A run consists of windows of steps. The first window warms up (compilation, first use of memory, filling of buffers);
the speed is that of the others.

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
    """B; sparsify takes as many whole sequences as fit into it, and leaves out special tokens."""
    window: int = 16
    """Steps of a window."""
    windows: int = 4
    """Windows of the run; the first one is not counted."""

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.window * self.windows

    @property
    def sequences(self) -> int:
        """Whole sequences that fit into a batch."""
        return max(1, self.batch // self.context)

    def written(self) -> str:
        """The task as one argument of a command line; `read` is the inverse."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def read(cls, written: str) -> Self:
        """The task that `written` returned."""
        fields = json.loads(written)
        return cls(**fields | {"text": tuple(fields["text"])})

    def names(self) -> dict[str, str | list[str]]:
        """The names of the model and the text files without their folders, as results keep them."""
        return {"model": Path(self.model).name, "text": [Path(text).name for text in self.text]}


@dataclass(frozen=True)
class Window:
    """Some consecutive steps."""

    rows: int
    """Tokens trained on, at each site."""
    seconds: float


def tokens_per_second(windows: Sequence[Window]) -> float:
    """The speed over all windows but the first."""
    steady = windows[1:]
    return sum(window.rows for window in steady) / sum(window.seconds for window in steady)


def windows_between(begun: Sequence[float], rows: Sequence[int], steps: int) -> list[Window]:
    """Windows of `steps` steps, from the time in seconds at which each step began and the tokens it trained on.

    A step ends where the next one begins, so the last step is in no window.
    """
    firsts = range(0, len(begun) - steps, steps)
    return [Window(sum(rows[n : n + steps]), begun[n + steps] - begun[n]) for n in firsts]
