"""What the kernels are measured against: the definitions, dense and in float64.

Shape letters: B rows, D input width, F latents, K codes a row, N entries.
"""

import torch
from torch import Tensor

from panscope.kernels.backend import Contribution, Gradient, Grouped

EPS = 2.0**-22
"""What a float32 sum may lose, as a share of |x| |w|."""


def unscaled(low: Tensor, size: Tensor) -> Tensor:
    """float64 of what is stored: float16 rows times the power of two that brings their norm to between 1 and 2."""
    return torch.ldexp(low.double(), (torch.frexp(size).exponent - 1)[:, None])


def rounded(x: Tensor, size: Tensor) -> Tensor:
    """float64 of the same by torch's own rounding."""
    power = (torch.frexp(size).exponent - 1)[:, None]
    return torch.ldexp(torch.ldexp(x.double(), -power).half().double(), power)


def exact(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """[B, F] pre-activations."""
    return x.double() @ W.double().T + b.double()


def check_topk(found: tuple[Tensor, Tensor], pre: Tensor, norms: Tensor | None, tolerance: float) -> None:
    """`found` [B, K] twice are k best of pre [B, F] by relu(pre) * norms, but for ties within `tolerance`."""
    values, latents = found
    k = values.shape[1]
    scores = pre.nan_to_num(nan=0.0).relu() * (1 if norms is None else norms.double())
    best = scores.topk(k, dim=1).values
    chosen = scores.gather(1, latents) * (values > 0)
    torch.testing.assert_close(chosen.sort(dim=1, descending=True).values, best, rtol=0, atol=tolerance)
    torch.testing.assert_close(values.double(), pre.gather(1, latents) * (values > 0), rtol=0, atol=tolerance)
    assert (latents[values == 0] == 0).all()
    assert (values >= 0).all()
    for row, row_values in zip(latents.tolist(), values.tolist(), strict=True):
        used = [latent for latent, value in zip(row, row_values, strict=True) if value > 0]
        assert len(used) == len(set(used)), "a latent was chosen twice"


def contribution(latents: Tensor, coefficients: Tensor, source: Tensor, places: Tensor, width: int) -> Contribution:
    """Entries grouped by latent with nothing but torch."""
    counts = torch.bincount(latents, minlength=width)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Contribution(coefficients, source, places, Grouped(starts, latents.argsort(stable=True)))


def dense(W: Tensor, gradient: Gradient, project: bool) -> Tensor:
    """[F, D] float64, latent by latent."""
    g = torch.zeros(W.shape, dtype=torch.float64)
    part = gradient.contribution
    for f in range(len(W)):
        if part is not None:
            for n in part.grouped.order[part.grouped.starts[f] : part.grouped.starts[f + 1]].tolist():
                g[f] += part.coefficients[n].double() * part.source[part.places[n]].double()
        if gradient.radial is not None:
            g[f] += gradient.radial[f].double() * W[f].double()
        if gradient.extra_index is not None and gradient.extra_index[f] >= 0:
            assert gradient.extra is not None
            g[f] += gradient.extra[gradient.extra_index[f]].double()
    w = W.double()
    return g - (g * w).sum(dim=1, keepdim=True) * w if project else g
