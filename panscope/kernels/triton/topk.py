"""TopK without the [B, F] matrix: screened scores find candidates chunk by chunk, and exact scores decide.

A row's k-th largest group top is a first threshold; the latents above it are rescored, and the k-th of these exact
scores is a lower bound of the true k-th score. Every latent that may reach it by `bound.order` is rescored as well. The
result is the best k in ascending order of latents, so that it does not depend on the screen, down to the last bit.

There is no synchronisation with the host. `torch.topk` is not used: a bisection needs no sort and no second buffer, and
stays in registers and the L1 cache.

Shape letters: B rows, R rows of a chunk, D input width, F latents, G groups, C capacity of a row's list, K codes per
row.
"""

import torch
import triton
from torch import Tensor

from panscope.kernels.backend import InputRows, Screen
from panscope.kernels.triton import launch
from panscope.kernels.triton.arrange import sorted_lists
from panscope.kernels.triton.bound import Latent, Screened, screened
from panscope.kernels.triton.choose import choose
from panscope.kernels.triton.gather import Lists, gather
from panscope.kernels.triton.groups import tops
from panscope.kernels.triton.kth import kth
from panscope.kernels.triton.rescore import rescore_lists
from panscope.kernels.triton.scan import TILE, scan

LARGEST_GROUP = 32
"""Adjacent latents for which the first pass computes one maximum."""
_GROUPS_PER_CODE = 8
"""Least number of groups per code, so that few of the k best share a group."""


def group_size(width: int, k: int) -> int:
    """Number of latents of a group, a power of two."""
    size = LARGEST_GROUP
    while size > 1 and width < _GROUPS_PER_CODE * k * size:
        size //= 2
    return size


def list_capacity(k: int) -> int:
    """Capacity of a row's list of candidates: random data need about 1.2 k."""
    return max(4 * TILE, triton.next_power_of_2(4 * k))


def topk(
    rows: InputRows, W_enc: Tensor, b_enc: Tensor, screen: Screen, k: int, norms: Tensor | None, capacity: int
) -> tuple[Tensor, Tensor]:
    """Exact pre-activations and latents [B, K] of the k largest relu(pre) * norms; capacity C >= k + 64."""
    count, (width, inputs) = len(rows.x), W_enc.shape
    assert 0 < k <= width, f"k is {k}, which is not in 1 to {width}"
    assert capacity >= k + TILE, f"lists of capacity {capacity} cannot hold {k} codes and {TILE} more"
    launch.checked("x", rows.x, count, inputs)
    launch.checked("W_enc", W_enc, width, inputs)
    launch.checked("b_enc", b_enc, width)
    latent = Latent(b_enc, screen.size, screen.lost, norms)
    pre = torch.empty(count, k, dtype=torch.float32, device=rows.x.device)
    latents = torch.empty(count, k, dtype=torch.int64, device=rows.x.device)
    group = group_size(width, k)
    for chunk in screened(rows, screen, latent, extra_bytes=24 * capacity + 8 * triton.cdiv(width, group)):
        choose(_candidates(chunk, W_enc, k, group, capacity), pre[chunk.part], latents[chunk.part])
    return pre, latents


def _candidates(chunk: Screened, W_enc: Tensor, k: int, group: int, capacity: int) -> Lists:
    """Rescored latents that include the k best of each row of a chunk, sorted by latent."""
    lists = Lists.empty(len(chunk.product), capacity, W_enc.device)
    best = tops(chunk, group, floor=False)
    first = kth(best, k)
    gather(chunk, best, group, first, None, lists)
    rescore_lists(chunk, W_enc, lists, None)
    low = kth(lists.scores, k, lists.filled)
    rescored = lists.filled.clone()
    gather(chunk, best, group, low, first, lists)
    rescore_lists(chunk, W_enc, lists, rescored)
    scan(chunk, W_enc, k, low, lists)
    return sorted_lists(lists)
