"""Which kernels this machine has for a device, and what it lacks: asked once, said once, never guessed.

Numba and Triton are imported only when they are going to be used.
"""

import importlib
import importlib.util
from dataclasses import dataclass

import torch

from panscope.kernels.backend import Kernels

_SPARSE = {"cpu": ("numba", "panscope.kernels.cpu"), "cuda": ("triton", "panscope.kernels.triton")}
"""Type of device -> the library its kernels are written in, and where they are."""


@dataclass(frozen=True)
class KernelSupport:
    """The sparse kernels for one device, or why there are none."""

    kernels: Kernels | None
    why: str
    """One phrase."""


def sparse_kernels(device: torch.device) -> KernelSupport:
    """What there is for `device`; nothing is compiled yet."""
    if device.type not in _SPARSE:
        return KernelSupport(None, f"there are none for devices of type {device.type!r}")
    library, module = _SPARSE[device.type]
    if importlib.util.find_spec(library) is None:
        return KernelSupport(None, f"{library} is not installed")
    kernels = importlib.import_module(module).build(device)
    return KernelSupport(kernels, kernels.description)
