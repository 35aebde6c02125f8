"""Groups entries by latent with a counting sort, so that one pass over the latents can compute their gradients.

Shape letters: F latents, N entries.
"""

from typing import Any

import torch
from torch import Tensor

from panscope.kernels.backend import Grouped
from panscope.kernels.cpu.arrays import array
from panscope.kernels.cpu.compiled import kernel


def group(latents: Tensor, width: int) -> Grouped:
    """`Kernels.group`."""
    starts, order = torch.zeros(width + 1, dtype=torch.int64), torch.empty_like(latents)
    _sort(array(latents), array(starts), array(order))
    return Grouped(starts, order)


@kernel
def _sort(latents: Any, starts: Any, order: Any) -> None:
    """A stable counting sort: the entries of a latent keep their order. `starts` [F + 1] must be zeros."""
    width = len(starts) - 1
    for n in range(len(latents)):
        starts[latents[n] + 1] += 1
    for f in range(width):
        starts[f + 1] += starts[f]
    for n in range(len(latents)):
        order[starts[latents[n]]] = n
        starts[latents[n]] += 1
    for f in range(width, 0, -1):
        starts[f] = starts[f - 1]
    starts[0] = 0
