"""The kernels for CPUs: loops compiled by Numba and single-threaded matrix products, in a thread pool.

The only package that imports numba. Kernels are compiled at their first call and cached on disk.
"""

import torch

from panscope.kernels.cpu.implementation import CpuKernels

__all__ = ["CpuKernels", "build"]


def build(device: torch.device) -> CpuKernels:
    """The kernels for a CPU device, with the screen's precision and number of threads chosen for this machine."""
    assert device.type == "cpu"
    return CpuKernels()
