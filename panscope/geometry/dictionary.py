"""The decoder of one coder as a matrix of vectors, the input of all geometry analyses.

A crosscoder's decoder concatenates its sites, and a multilayer coder has one decoder for all layers, so both are one
matrix.

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
        """The number of latents with a decoder vector of zeros; they have no direction and are always excluded."""
        return int((~self.rows.any(dim=1)).sum())
