"""Dictionaries whose geometry is known, because it was put there.

Shape letters: F latents, G latents of the narrow one, D width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from panscope.geometry.dictionary import Dictionary

WIDTH = 64


def quiet(done: int, total: int) -> None:
    """Nobody listens."""


def orthogonal(count: int, width: int, seed: int) -> Tensor:
    """[count, D] orthonormal rows."""
    square = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(square).Q[:count]


def rotated(row: Tensor, towards: Tensor, cosine: float) -> Tensor:
    """A unit vector at exactly this cosine to a unit `row`, in the plane of it and the orthogonal `towards`."""
    return cosine * row + (1 - cosine**2) ** 0.5 * towards


@dataclass(frozen=True)
class Split:
    """A narrow dictionary and a wide one made of it."""

    narrow: Dictionary
    wide: Dictionary
    parents: list[int]
    """[F] whom each wide latent was made of; -1 for new ones."""
    cosines: list[float]
    """[F] of the children to their parents; 0 for new ones."""


def planted_split(seed: int = 0) -> Split:
    """Ten narrow latents with 0, 1, 2 or 3 children at cosines of 0.99 to 0.8, and four directions that are new.

    All axes are orthogonal, so every cosine that was not planted is small or 0.
    """
    axes = orthogonal(WIDTH, WIDTH, seed)
    narrow, spare = axes[:10], iter(axes[10:])
    rows, parents, cosines = [], [], []
    for parent, children in enumerate([0, 1, 2, 3, 1, 2, 0, 1, 1, 3]):
        for child in range(children):
            cosine = [0.99, 0.9, 0.8][child]
            rows.append(rotated(narrow[parent], next(spare), cosine))
            parents.append(parent)
            cosines.append(cosine)
    for _ in range(4):
        rows.append(next(spare))
        parents.append(-1)
        cosines.append(0.0)
    order = np.random.default_rng(seed).permutation(len(rows))
    sizes = torch.linspace(0.5, 4, len(rows), dtype=torch.float64)[:, None]
    wide = torch.stack(rows)[torch.from_numpy(order)] * sizes
    return Split(
        Dictionary("narrow", narrow.float()),
        Dictionary("wide", wide.float()),
        [parents[place] for place in order],
        [cosines[place] for place in order],
    )


def random_dictionary(name: str, latents: int, width: int, seed: int) -> Dictionary:
    """Directions drawn evenly, norms from 0.1 to 10."""
    rows = torch.randn(latents, width, generator=torch.Generator().manual_seed(seed))
    return Dictionary(name, rows * torch.logspace(-1, 1, latents)[:, None])


def cosine_matrix(a: Tensor, b: Tensor) -> np.ndarray:
    """[F, G] float64."""
    x, y = a.numpy().astype(np.float64), b.numpy().astype(np.float64)
    return (x @ y.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(y, axis=1)[None]
