"""Sorts each row's candidates by latent.

The order in which candidates are found depends on the last bits of the screen, but results must not: sums over codes
are computed in their order, and the first of tied candidates is kept. A candidate's rank is the number of smaller
latents, which is fast because lists are short.

Shape letters: R rows of a chunk, C the capacity of a row's list.
"""

import torch
import triton
import triton.language as tl

from panscope.kernels.triton.gather import Lists

_BLOCK = 128
"""Candidates ranked at a time."""
_OTHERS = 64
"""Candidates that these are compared with at a time."""


def sorted_lists(lists: Lists) -> Lists:
    """The rescored candidates, sorted by latent."""
    found = Lists(
        torch.empty_like(lists.latents), lists.filled, torch.empty_like(lists.pre), torch.empty_like(lists.scores)
    )
    count, capacity = lists.latents.shape
    _arrange[(count,)](
        lists.latents, lists.pre, lists.scores, lists.filled, found.latents, found.pre, found.scores, capacity,
        BLOCK=_BLOCK, OTHERS=_OTHERS, num_warps=4,
    )  # fmt: skip
    return found


@triton.jit
def _arrange(  # noqa: PLR0913
    latents, pre, scores, filled, to_latents, to_pre, to_scores, C, BLOCK: tl.constexpr, OTHERS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    count = tl.minimum(tl.load(filled + row), C)
    at = row * C
    for first in range(0, count, BLOCK):
        n = first + tl.arange(0, BLOCK)
        f = tl.load(latents + at + n, mask=n < count, other=0)
        place = tl.zeros([BLOCK], tl.int32)
        for begin in range(0, count, OTHERS):
            other = begin + tl.arange(0, OTHERS)
            g = tl.load(latents + at + other, mask=other < count, other=0x7FFFFFFF)
            place += tl.sum((g[None, :] < f[:, None]).to(tl.int32), axis=1)
        tl.store(to_latents + at + place, f, mask=n < count)
        tl.store(to_pre + at + place, tl.load(pre + at + n, mask=n < count, other=0.0), mask=n < count)
        tl.store(to_scores + at + place, tl.load(scores + at + n, mask=n < count, other=0.0), mask=n < count)
