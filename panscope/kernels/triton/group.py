"""Entries latent by latent: a stable sort of the latents' numbers, and where each begins.

The sort is torch's radix sort on integers of 16 or 32 bits: a few passes over 4 bytes an entry, 0.1 ms or so at 400,000
entries, where the step takes 20. A counting sort of our own would save little and needs ordered atomics to be
stable. `torch.bincount` is avoided, it waits for the device.

Shape letters: F latents, N entries.
"""

import torch
from torch import Tensor

from panscope.kernels.backend import Grouped


def group(latents: Tensor, width: int) -> Grouped:
    """Group latents [N] int64, all below `width` = F."""
    keys = latents.to(torch.int16 if width <= torch.iinfo(torch.int16).max else torch.int32)
    ordered, order = torch.sort(keys, stable=True)
    every = torch.arange(width + 1, device=latents.device, dtype=keys.dtype)
    return Grouped(torch.searchsorted(ordered, every), order)
