"""What a coder's weights alone say of its latents: how alike they are, and whether they read what they write.

Of each latent: decoder_cosine and encoder_cosine, the largest cosine of its decoder (encoder) vector to that of another
latent; encoder_decoder_cosine, between its own two vectors, undefined where they have other widths; encoder_norm and
encoder_bias. A vector of zeros has no cosine. The means over the latents that have one are `decoder_cosine` (the mean
maximum cosine similarity of the Multi-Layer SAE), `encoder_cosine` and `encoder_decoder_cosine` of eval.json (SAEBench,
core metrics: average_max_decoder_cosine_sim ...).

Shape letters: F latents, D input width, E output width.
"""

import torch
from torch import Tensor

from panscope.coders.base import Coder
from panscope.kernels.cosines import directions, excluding_self, nearest

COSINES = ("decoder_cosine", "encoder_cosine", "encoder_decoder_cosine")


@torch.no_grad()
def weight_columns(coder: Coder) -> dict[str, Tensor]:
    """[F] float64 a column, on the CPU; costs two products of the coder's size squared."""
    W_enc, W_dec = coder.W_enc.detach(), coder.W_dec.detach()
    own = torch.full((len(W_enc),), torch.nan, dtype=torch.float64)
    if W_enc.shape == W_dec.shape:
        own = (directions(W_enc) * directions(W_dec)).sum(dim=1)
        own = own.masked_fill(~(W_enc.any(dim=1) & W_dec.any(dim=1)), torch.nan)
    columns = {
        "decoder_cosine": _largest(W_dec),
        "encoder_cosine": _largest(W_enc),
        "encoder_decoder_cosine": own,
        "encoder_norm": W_enc.double().norm(dim=1),
        "encoder_bias": coder.b_enc.detach().double(),
    }
    return {name: column.cpu() for name, column in columns.items()}


def weight_numbers(columns: dict[str, Tensor]) -> dict[str, float]:
    """The means of the cosines over latents; NaN where none has one."""
    return {name: float(columns[name].nanmean()) for name in COSINES}


def _largest(vectors: Tensor) -> Tensor:
    """[F] the largest cosine of each of vectors [F, D] to another; NaN where there is none to compare with."""
    found = nearest(vectors, vectors, limits=excluding_self(len(vectors)))
    return found.cosines[:, 0].masked_fill(~found.found, torch.nan)
