"""One comparison of training steps: an architecture and its shape, written `topk:4096x512x8192@32`.

Shape letters: B rows of a batch, D width of a row, F latents.
"""

import re
from dataclasses import dataclass
from typing import Literal, Self, get_args

from panscope.types import UserError

Architecture = Literal["topk", "jumprelu", "relu"]
_ARCHITECTURES: dict[str, Architecture] = {name: name for name in get_args(Architecture)}
_WRITTEN = re.compile(r"(\w+):(\d+)x(\d+)x(\d+)@(\d+)")


@dataclass(frozen=True)
class Case:
    """An architecture at one shape."""

    architecture: Architecture
    """`relu` has an L1 penalty."""
    rows: int
    """B."""
    d: int
    """D."""
    width: int
    """F."""
    active: int
    """K of TopK; for the other architectures the approximate number of active latents in a row."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a case written as ARCHITECTURE:BxDxF@ACTIVE; raises UserError for any other text."""
        found = _WRITTEN.fullmatch(text)
        architecture = _ARCHITECTURES.get(found[1]) if found else None
        if found is None or architecture is None:
            known = ", ".join(_ARCHITECTURES)
            raise UserError(f"case {text!r} is not ARCHITECTURE:BxDxF@ACTIVE, such as {CASES[0]}, with one of {known}")
        rows, d, width, active = (int(number) for number in found.groups()[1:])
        if not 0 < active <= width or not rows or not d:
            raise UserError(f"case {text!r}: every number must be above 0, and ACTIVE at most F")
        return cls(architecture, rows, d, width, active)

    def __str__(self) -> str:
        return f"{self.architecture}:{self.rows}x{self.d}x{self.width}@{self.active}"

    def small(self) -> Self:
        """The same architecture at a shape whose steps take almost no time, for warming up a process."""
        active = min(4, self.active)
        return type(self)(self.architecture, min(64, self.rows), min(32, self.d), min(128, self.width), active)


CASES = (
    "topk:4096x512x8192@32",
    "topk:4096x768x16384@32",
    "topk:2048x768x65536@32",
    "jumprelu:4096x512x8192@50",
    "relu:4096x512x8192@50",
)
"""The cases that are compared by default."""
