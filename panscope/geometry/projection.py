"""A neighbourhood laid out in two dimensions by UMAP (McInnes et al. 2018), as in Llama Scope's Fig. 7.

UMAP keeps who is near whom; distances and directions in the picture mean nothing beyond that. umap is imported only
when there is something to lay out, since that alone takes seconds.

Shape letters: P points, D width of a decoder vector.
"""

import torch
from torch import Tensor

from panscope.geometry.umap_layout import layout
from panscope.kernels.cosines import directions
from panscope.types import UserError

LEAST = 5
"""Points below which a layout says nothing, and UMAP's own start cannot be computed."""
_NEIGHBOURS = 15
"""UMAP's own default for the size of the neighbourhood that it keeps; fewer where there are fewer points."""


def project(rows: Tensor, seed: int) -> Tensor:
    """[P, D] -> [P, 2] float32 by cosine; the same numbers for the same seed on one machine.

    Raises UserError for fewer than 5 points.
    """
    if len(rows) < LEAST:
        raise UserError(
            f"a neighbourhood of {len(rows)} latents is too small for a layout in two dimensions: at least {LEAST} are "
            "needed, so ask for more neighbours, or choose a wider coder"
        )
    unit = directions(rows).float().cpu().numpy()
    return torch.from_numpy(layout(unit, neighbours=min(_NEIGHBOURS, len(rows) - 1), seed=seed))
