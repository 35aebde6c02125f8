"""The CPU's kernels: loops compiled by Numba between single-threaded matrix products, in a pool of threads.

The only package that imports numba. Nothing is compiled before it is called; what was compiled once is kept on disk.
"""

import torch

from panscope.kernels.cpu.implementation import CpuKernels

__all__ = ["CpuKernels", "build"]


def build(device: torch.device) -> CpuKernels:
    """The kernels for a CPU device, with the precision and the number of threads this machine calls for."""
    assert device.type == "cpu"
    return CpuKernels()
