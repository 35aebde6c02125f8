"""The gradient of a matrix as the backward pass finds it: sums over entries and a few rows, never a matrix.

Shape letters: B rows, D width of the matrix, F latents, N entries, M rows of a source.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from panscope.kernels.backend import Contribution, Gradient, Grouped


@dataclass(frozen=True)
class Sum:
    """Each of N entries adds coefficient * source[place] to the gradient of its latent's row."""

    latents: Tensor
    """[N]."""
    coefficients: Tensor
    """[N]."""
    source: Tensor
    """[M, D]."""
    places: Tensor
    """[N]."""


class Account:
    """What was found for one matrix [F, D] in one step."""

    def __init__(self, W: Tensor) -> None:
        self.W = W
        self._sums: list[Sum] = []
        self._radial: Tensor | None = None
        self._taken: list[tuple[Tensor, Tensor]] = []

    def add_sum(self, found: Sum) -> None:
        """A sum over entries."""
        self._sums.append(found)

    def add_radial(self, along: Tensor) -> None:
        """along [F]: that much of each row of the matrix itself."""
        self._radial = along if self._radial is None else self._radial + along

    def add_rows(self, index: Tensor, gradient: Tensor) -> None:
        """gradient [n, D] of the rows at index [n], no row twice."""
        self._taken.append((index, gradient))

    def gradient(self, group: Callable[[Tensor], Grouped]) -> Gradient:
        """All of it; `group` sorts entries by latent."""
        contribution = None
        if self._sums:
            total = _joined(self._sums)
            contribution = Contribution(total.coefficients, total.source, total.places, group(total.latents))
        if not self._taken:
            return Gradient(contribution, self._radial)
        assert len(self._taken) == 1, "only AuxK takes rows, once a step"
        index, rows = self._taken[0]
        extra_index = index.new_full((len(self.W),), -1)
        extra_index[index] = torch.arange(len(index), device=index.device)
        return Gradient(contribution, self._radial, extra_index, rows.contiguous())


def _joined(sums: list[Sum]) -> Sum:
    """Several sums as one over the entries of all; their sources stand below each other."""
    if len(sums) == 1:
        return sums[0]
    offsets = [0]
    for part in sums[:-1]:
        offsets.append(offsets[-1] + len(part.source))
    return Sum(
        torch.cat([part.latents for part in sums]),
        torch.cat([part.coefficients for part in sums]),
        torch.cat([part.source for part in sums]),
        torch.cat([part.places + offset for part, offset in zip(sums, offsets, strict=True)]),
    )
