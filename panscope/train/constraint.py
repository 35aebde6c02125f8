"""The unit-norm constraint on decoder vectors (Gemma Scope section 3.2; Bricken et al. 2023).

Before Adam the part of the gradient along each vector is taken out; after the update the vectors are brought back to
norm 1. Shape letters: F latents, E output width.
"""

import torch
from torch import Tensor


@torch.no_grad()
def project_out_parallel(gradient: Tensor, W_dec: Tensor) -> None:
    """Remove, in place, from each row of `gradient` [F, E] its component along the unit row of `W_dec` [F, E]."""
    along = (gradient * W_dec).sum(dim=1, keepdim=True)
    gradient.addcmul_(along, W_dec, value=-1)


@torch.no_grad()
def renormalise(W_dec: Tensor) -> None:
    """Bring every row of `W_dec` [F, E] to norm 1, in place."""
    W_dec.div_(W_dec.norm(dim=1, keepdim=True).clamp_min(torch.finfo(W_dec.dtype).tiny))
