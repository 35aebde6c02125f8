"""Finds the sparse kernels for a device, or the reason why there are none.

Numba and Triton are imported only when their kernels are used.
"""

import importlib
import importlib.util
from dataclasses import dataclass

import torch

from panscope.kernels.backend import Kernels

_SPARSE = {"cpu": ("numba", "panscope.kernels.cpu"), "cuda": ("triton", "panscope.kernels.triton")}
"""Device type -> the library that its kernels are written in, and their module."""


@dataclass(frozen=True)
class KernelSupport:
    """The sparse kernels for one device, or the reason why there are none."""

    kernels: Kernels | None
    detail: str
    """The kernels' description or that reason, in one phrase."""


def sparse_kernels(device: torch.device) -> KernelSupport:
    """The kernels for `device`; nothing is compiled yet."""
    if device.type not in _SPARSE:
        return KernelSupport(None, f"there are none for devices of type {device.type!r}")
    library, module = _SPARSE[device.type]
    if importlib.util.find_spec(library) is None:
        return KernelSupport(None, f"{library} is not installed")
    kernels = importlib.import_module(module).build(device)
    return KernelSupport(kernels, kernels.description)
