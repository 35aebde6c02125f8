"""The k-th largest positive number of each row, by bisection on the bits: 31 counts, no sort.

Positive floats have the order of their bits as integers. Rows stay in the L1 cache between counts.

Shape letters: R rows, C columns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from panscope.kernels.triton import launch

_BLOCK = 4096
"""Columns processed at a time."""


def kth(values: Tensor, k: int, filled: Tensor | None = None) -> Tensor:
    """[R] the k-th largest of each row of values [R, C], 0 if fewer than k are positive; NaN counts as 0.

    If `filled` [R] is given, only the first `filled` columns of a row are used.
    """
    count, width = values.shape
    out = torch.empty(count, dtype=torch.float32, device=values.device)
    block = min(_BLOCK, launch.padded(width))
    _kth[(count,)](values, filled, out, width, k, BLOCK=block, num_warps=launch.warps(block))
    return out


@triton.jit
def _kth(values, filled, out, C, k, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    count = C
    if filled is not None:
        count = tl.minimum(tl.load(filled + row), C)
    key = kth_bits(values + row * C, count, k, BLOCK)
    tl.store(out + row, key.to(tl.float32, bitcast=True))


@triton.jit
def kth_bits(values, count, k, BLOCK: tl.constexpr):
    """The bits (int32) of the k-th largest positive of `count` values, 0 if there are fewer."""
    key = tl.full((), 0, tl.int32)
    for step in range(31):
        trial = key | (1 << (30 - step))
        key = tl.where(count_from(values, count, trial, BLOCK) >= k, trial, key)
    return key


@triton.jit
def count_from(values, count, key, BLOCK: tl.constexpr):
    """The number of `count` values whose bits are at least `key`."""
    found = tl.full((), 0, tl.int32)
    for first in range(0, count, BLOCK):
        n = first + tl.arange(0, BLOCK)
        bits = positive_bits(tl.load(values + n, mask=n < count, other=0.0))
        found += tl.sum((bits >= key).to(tl.int32), axis=0)
    return found


@triton.jit
def positive_bits(value):
    """The bits of a positive value, 0 for others and for NaN."""
    return tl.where(value > 0, value, 0.0).to(tl.int32, bitcast=True)
