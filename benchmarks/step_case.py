"""What one comparison of steps is about: an architecture at a shape, written `topk:4096x512x8192@32`.

Shape letters: B rows of a batch, D width of a row, F latents.
"""

import re
from dataclasses import dataclass
from typing import Literal, Self, get_args

from panscope.types import UserError

Architecture = Literal["topk", "jumprelu", "relu"]
_WRITTEN = re.compile(r"(\w+):(\d+)x(\d+)x(\d+)@(\d+)")


@dataclass(frozen=True)
class Case:
    """One comparison."""

    architecture: Architecture
    """`relu` has an L1 penalty."""
    rows: int
    """B."""
    d: int
    """D."""
    width: int
    """F."""
    active: int
    """K of TopK; for the others how many latents a row shall have active, about."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """A case from how it is written, ARCHITECTURE:BxDxF@ACTIVE; raises UserError unless it is that."""
        found = _WRITTEN.fullmatch(text)
        if found is None or found[1] not in get_args(Architecture):
            known = ", ".join(get_args(Architecture))
            raise UserError(f"case {text!r} is not ARCHITECTURE:BxDxF@ACTIVE, such as {CASES[0]}, with one of {known}")
        rows, d, width, active = (int(number) for number in found.groups()[1:])
        if not 0 < active <= width or not rows or not d:
            raise UserError(f"case {text!r}: every number must be above 0, and ACTIVE at most F")
        return cls(found[1], rows, d, width, active)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.architecture}:{self.rows}x{self.d}x{self.width}@{self.active}"

    def small(self) -> Self:
        """The same architecture in a shape that takes no time: what a process is warmed up with."""
        active = min(4, self.active)
        return type(self)(self.architecture, min(64, self.rows), min(32, self.d), min(128, self.width), active)


CASES = (
    "topk:4096x512x8192@32",
    "topk:4096x768x16384@32",
    "topk:2048x768x65536@32",
    "jumprelu:4096x512x8192@50",
    "relu:4096x512x8192@50",
)
"""What is compared where nothing else is asked for."""
