"""The decoder of one coder as plain vectors, which is all that geometry looks at.

A crosscoder's sites are concatenated in it and a multilayer coder has one for all its layers: both are one matrix.

Shape letters: F latents, D width of a decoder vector.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Dictionary:
    """The decoder vectors of a coder."""

    name: str
    rows: Tensor
    """[F, D]."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """D."""
        return self.rows.shape[1]

    @property
    def zeros(self) -> int:
        """How many latents have a decoder vector of zeros: they have no direction and are left out everywhere."""
        return int((~self.rows.any(dim=1)).sum())
