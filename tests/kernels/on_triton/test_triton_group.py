"""Entries by latent; and that the interface is complete.

Shape letters: F latents, N entries.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from panscope.kernels.backend import Kernels


@pytest.mark.parametrize("N", [0, 1, 50])
@pytest.mark.parametrize("F", [1, 7, 40_000])
def test_group(kernels: Any, N: int, F: int) -> None:
    latents = torch.randint(0, F, (N,))
    found = kernels.group(latents, F)
    assert found.starts.dtype == found.order.dtype == torch.int64
    assert torch.equal(found.order, latents.argsort(stable=True))
    assert torch.equal(found.starts.diff(), torch.bincount(latents, minlength=F))
    assert found.starts[0] == 0


def test_the_last_latent_of_an_int16(kernels: Any) -> None:
    F = 2**15 - 1
    found = kernels.group(torch.tensor([F - 1, 0, F - 1]), F)
    assert (found.order.tolist(), found.starts[-2:].tolist()) == ([1, 0, 2], [1, 3])


def test_the_interface(kernels: Any, device: torch.device, part: Callable[[str], Any]) -> None:
    """All methods are implemented, and `build` returns an instance."""
    wanted = {name for name in vars(Kernels) if not name.startswith("_")}
    assert wanted <= set(dir(kernels))
    assert part("").build(device).description == kernels.description
    assert kernels.name == "triton"
    done: list[int] = []
    kernels.parallel_for(done.append, 3)
    assert done == [0, 1, 2]
