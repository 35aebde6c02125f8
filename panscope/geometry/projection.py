"""Projection of a neighbourhood to two dimensions by UMAP (McInnes et al. 2018), as in Llama Scope's Fig. 7.

UMAP preserves neighbourhoods; distances and directions in the plot have no further meaning. umap is imported only when
needed, since the import takes seconds.

Shape letters: P points, D width of a decoder vector.
"""

import torch
from torch import Tensor

from panscope.geometry.umap_layout import layout
from panscope.kernels.cosines import directions
from panscope.types import UserError

MIN_POINTS = 5
"""The fewest points for which a layout is meaningful and UMAP's initialisation can be computed."""
_NEIGHBOURS = 15
"""UMAP's default size of a neighbourhood; reduced if there are fewer points."""


def project(rows: Tensor, seed: int) -> Tensor:
    """[P, D] -> [P, 2] float32 by cosine similarity; reproducible for the same seed on one machine.

    Raises UserError for fewer than 5 points.
    """
    if len(rows) < MIN_POINTS:
        raise UserError(
            f"a neighbourhood of {len(rows)} latents is too small for a layout in two dimensions: at least "
            f"{MIN_POINTS} are needed, so request more neighbours, or choose a wider coder"
        )
    unit = directions(rows).float().cpu().numpy()
    return torch.from_numpy(layout(unit, neighbours=min(_NEIGHBOURS, len(rows) - 1), seed=seed))
