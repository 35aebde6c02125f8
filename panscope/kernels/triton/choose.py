"""Selects the k best of each row's rescored candidates; exactly k also if scores are tied.

Shape letters: R rows of a chunk, C the capacity of a row's list, K codes per row.
"""

import triton
import triton.language as tl
from torch import Tensor

from panscope.kernels.triton import launch
from panscope.kernels.triton.gather import Lists
from panscope.kernels.triton.kth import count_from, kth_bits, positive_bits

_BLOCK = 4096
"""Candidates processed at a time."""


def choose(lists: Lists, pre: Tensor, latents: Tensor) -> None:
    """Write the K best positive scores to pre and latents [R, K], padded with zeros; overwrites `lists.scores`."""
    count, capacity = lists.latents.shape
    block = min(_BLOCK, launch.padded(capacity))
    _choose[(count,)](
        lists.scores, lists.pre, lists.latents, lists.filled, pre, latents, capacity, pre.shape[1],
        BLOCK=block, num_warps=launch.warps(block),
    )  # fmt: skip


@triton.jit
def _choose(scores, pre, lists, filled, out, latents, C, K, BLOCK: tl.constexpr):  # noqa: PLR0913
    row = tl.program_id(0).to(tl.int64)
    count = tl.minimum(tl.load(filled + row), C)
    at = row * C
    key = kth_bits(scores + at, count, K, BLOCK)
    kept = keep(scores + at, pre + at, lists + at, count, K, key, out + row * K, latents + row * K, BLOCK)
    for first in range(kept, K, BLOCK):
        n = first + tl.arange(0, BLOCK)
        tl.store(out + row * K + n, 0.0, mask=n < K)
        tl.store(latents + row * K + n, 0, mask=n < K)


@triton.jit
def keep(scores, pre, lists, count, k, key, to_pre, to_lists, BLOCK: tl.constexpr):  # noqa: PLR0913
    """Move the scores above `key` (the k-th score's bits) to the front, and the first of those equal to it, up to k.

    Scores move within `scores`; pre-activations and latents go to `to_pre` and `to_lists`, which may be `pre` and
    `lists` themselves. Returns the number kept.
    """
    room = k - count_from(scores, count, key + 1, BLOCK)
    kept, equal = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    for first in range(0, count, BLOCK):
        n = first + tl.arange(0, BLOCK)
        score = tl.load(scores + n, mask=n < count, other=0.0)
        value = tl.load(pre + n, mask=n < count, other=0.0)
        f = tl.load(lists + n, mask=n < count, other=0)
        bits = positive_bits(score)
        same = (bits == key) & (key > 0)
        tied = equal + tl.cumsum(same.to(tl.int32), axis=0) - 1
        taken = (bits > key) | (same & (tied < room))
        place = kept + tl.cumsum(taken.to(tl.int32), axis=0) - 1
        tl.debug_barrier()  # all of a block is read before any of it is overwritten
        tl.store(scores + place, score, mask=taken)
        tl.store(to_pre + place, value, mask=taken)
        tl.store(to_lists + place, f, mask=taken)
        kept += tl.sum(taken.to(tl.int32), axis=0)
        equal += tl.sum(same.to(tl.int32), axis=0)
    tl.debug_barrier()
    return kept
