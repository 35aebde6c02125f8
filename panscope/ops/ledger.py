"""Collects the gradient of a matrix during the backward pass as sparse terms, without forming it as a matrix.

Shape letters: B rows, D width of the matrix, F latents, N entries, M rows of a source.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from panscope.kernels.backend import Contribution, Gradient, Grouped, Kernels


@dataclass(frozen=True)
class EntryTerms:
    """Terms of a gradient: each of N entries adds coefficient * source[source_row] to the row of its latent."""

    latents: Tensor
    """[N]."""
    coefficients: Tensor
    """[N]."""
    source: Tensor
    """[M, D]."""
    source_rows: Tensor
    """[N]."""


class GradientTerms:
    """The terms of the gradient of one matrix [F, D] in one step."""

    def __init__(self, W: Tensor) -> None:
        self.W = W
        self._entries: list[EntryTerms] = []
        self._radial: Tensor | None = None
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._sum: Tensor | None = None

    def add_entries(self, terms: EntryTerms) -> None:
        """Add terms of entries."""
        self._entries.append(terms)

    def add_radial(self, coefficients: Tensor) -> None:
        """Add coefficients [F] times the rows of the matrix itself."""
        self._radial = coefficients if self._radial is None else self._radial + coefficients

    def add_rows(self, index: Tensor, gradient: Tensor) -> None:
        """Add the gradient [n, D] of the rows at index [n], which has no duplicates."""
        self._rows.append((index, gradient))

    def add_up(self, kernels: Kernels, group: Callable[[Tensor, int], Grouped]) -> None:
        """Replace the terms so far by their sum [F, D], so that their sources can be freed."""
        total, self._sum = self._sum, None
        gradient = self.gradient(group)
        self._sum = torch.zeros_like(self.W.detach()) if total is None else total
        kernels.add_gradient(self.W.detach(), gradient, self._sum)
        self._entries, self._radial, self._rows = [], None, []

    def gradient(self, group: Callable[[Tensor, int], Grouped]) -> Gradient:
        """The whole gradient; `group` sorts entries by latent, given their number."""
        if self._sum is not None:
            assert not self._entries, "a part's terms were not added up"
            return Gradient(extra_index=torch.arange(len(self.W), device=self.W.device), extra=self._sum)
        contribution = None
        if self._entries:
            terms = _concatenated(self._entries)
            contribution = Contribution(
                terms.coefficients, terms.source, terms.source_rows, group(terms.latents, len(self.W))
            )
        if not self._rows:
            return Gradient(contribution, self._radial)
        assert len(self._rows) == 1, "rows were taken twice in a step, but only AuxK takes rows, once per step"
        index, rows = self._rows[0]
        extra_index = index.new_full((len(self.W),), -1)
        extra_index[index] = torch.arange(len(index), device=index.device)
        return Gradient(contribution, self._radial, extra_index, rows.contiguous())


def _concatenated(terms: list[EntryTerms]) -> EntryTerms:
    """The entries of all terms, with their sources concatenated along rows."""
    if len(terms) == 1:
        return terms[0]
    offsets = [0]
    for part in terms[:-1]:
        offsets.append(offsets[-1] + len(part.source))
    return EntryTerms(
        torch.cat([part.latents for part in terms]),
        torch.cat([part.coefficients for part in terms]),
        torch.cat([part.source for part in terms]),
        torch.cat([part.source_rows + offset for part, offset in zip(terms, offsets, strict=True)]),
    )
