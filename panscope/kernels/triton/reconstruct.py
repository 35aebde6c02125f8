"""Decodes codes and computes the errors and their gradients for codes and decoder: one program per row.

A program loops over the columns, 128 at a time: the codes' W_dec columns are read from memory for the reconstruction
and directly afterwards from cache for the codes' gradients (`slopes`). All nested prefixes are processed in each step.

Shape letters: B rows, E output width, F latents, N entries, P prefixes.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from panscope.kernels.backend import Entries, Reconstruction
from panscope.kernels.triton import launch

_COLUMNS = 128
"""Columns processed at a time: few enough for the codes' parts of W_dec to stay in cache until the second read."""
_TOGETHER = 32
"""Entries processed at a time."""


def reconstruct(
    codes: Entries, W_dec: Tensor, base: Tensor, y: Tensor, weights: Tensor, ends: Sequence[int]
) -> Reconstruction:
    """y_hat = base [E] or [B, E] + the decoded codes of each prefix, and its error from y [B, E]."""
    (count, width), prefixes = y.shape, len(ends)
    launch.checked("y", y, count, width)
    launch.checked("W_dec", W_dec, len(W_dec), width)
    launch.checked("weights", weights, count)
    launch.checked("base", base, *((count, width) if base.dim() == 2 else (width,)))
    assert ends[-1] == len(W_dec), f"the last prefix ends at {ends[-1]}, not {len(W_dec)}"
    y_hat, pull = torch.empty_like(y), y.new_empty(prefixes * count, width)
    errors, losses = y.new_empty(count), y.new_empty(count, dtype=torch.float64)
    slopes = torch.empty_like(codes.values)
    if count:
        _reconstruct[(count,)](
            codes.values, codes.latents, codes.starts, W_dec, base, y, weights, _limits(tuple(ends), y.device),
            y_hat, errors, losses, slopes, pull, count, width, width if base.dim() == 2 else 0, prefixes,
            TOGETHER=_TOGETHER, COLUMNS=min(_COLUMNS, launch.padded(width)), num_warps=4,
        )  # fmt: skip
    return Reconstruction(losses.sum().float(), y_hat, errors, slopes, pull)


@lru_cache(maxsize=64)
def _limits(ends: tuple[int, ...], device: torch.device) -> Tensor:
    """[P + 1] int64, from 0; cached, since a copy from the host would synchronise with the device."""
    return torch.tensor((0, *ends), dtype=torch.int64, device=device)


@triton.jit
def _reconstruct(  # noqa: PLR0913
    values, latents, starts, W_dec, base, y, weights, limits, y_hat, errors, losses, slopes, pull,
    B, E, base_stride, P, TOGETHER: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(starts + row), tl.load(starts + row + 1)
    weight = tl.load(weights + row)
    whole, every = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
    for first in range(0, E, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        live = column < E
        target = tl.load(y + row * E + column, mask=live, other=0.0)
        found = tl.load(base + row * base_stride + column, mask=live, other=0.0)
        error = tl.zeros([COLUMNS], tl.float32)
        for p in range(P):
            low, high = tl.load(limits + p), tl.load(limits + p + 1)
            found += _decoded(values, latents, W_dec, begin, end, low, high, column, E, TOGETHER, COLUMNS)
            error = found - target
            every += error * error
            tl.store(pull + (p * B + row) * E + column, error * (2 * weight / P), mask=live)
        whole += error * error
        tl.store(y_hat + row * E + column, found, mask=live)
        tl.debug_barrier()
        pulled = tl.zeros([COLUMNS], tl.float32)
        for back in range(P):
            p = P - 1 - back
            at = pull + (p * B + row) * E + column
            pulled += tl.load(at, mask=live, other=0.0)
            tl.store(at, pulled, mask=live)
            low, high = tl.load(limits + p), tl.load(limits + p + 1)
            _slopes(slopes, latents, W_dec, begin, end, low, high, pulled, column, first > 0, E, TOGETHER)
        tl.debug_barrier()
    tl.store(errors + row, tl.sum(whole, axis=0))
    tl.store(losses + row, tl.sum(every, axis=0).to(tl.float64) * weight / P)


@triton.jit
def _decoded(  # noqa: PLR0913
    values, latents, W_dec, begin, end, low, high, column, E, TOGETHER: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """[COLUMNS] the sum over the row's entries in the prefix of value * W_dec[latent]."""
    total = tl.zeros([TOGETHER, COLUMNS], tl.float32)
    for first in range(begin, end, TOGETHER):
        n = first + tl.arange(0, TOGETHER)
        f = tl.load(latents + n, mask=n < end, other=-1)
        some = (f >= low) & (f < high)
        value = tl.load(values + n, mask=some, other=0.0)
        part = tl.load(W_dec + f[:, None] * E + column[None, :], mask=some[:, None] & (column < E)[None, :], other=0.0)
        total += value[:, None] * part
    return tl.sum(total, axis=0)


@triton.jit
def _slopes(slopes, latents, W_dec, begin, end, low, high, pulled, column, further, E, TOGETHER: tl.constexpr):  # noqa: PLR0913
    """Add pulled . W_dec[latent] over these columns to the slopes of the row's entries in the prefix."""
    for first in range(begin, end, TOGETHER):
        n = first + tl.arange(0, TOGETHER)
        f = tl.load(latents + n, mask=n < end, other=-1)
        some = (f >= low) & (f < high)
        part = tl.load(W_dec + f[:, None] * E + column[None, :], mask=some[:, None] & (column < E)[None, :], other=0.0)
        before = tl.load(slopes + n, mask=some & further, other=0.0)
        tl.store(slopes + n, before + tl.sum(part * pulled[None, :], axis=1), mask=some)
