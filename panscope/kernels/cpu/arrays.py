"""Between tensors and kernels: the arrays behind tensors, and memory that is used again from call to call.

The first touch of fresh memory costs far more than the work done in it, so each thread keeps its buffers.
"""

import math
import threading

import numpy as np
import torch
from torch import Tensor


def array(tensor: Tensor) -> np.ndarray:
    """A tensor as a contiguous array, in the same memory where it lies so already; bfloat16 as int16."""
    tensor = tensor.detach().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


class Buffers(threading.local):
    """One thread's memory by name; what a buffer held before is lost at the next request for it."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory of this shape, its content arbitrary."""
        size = math.prod(shape) * dtype.itemsize
        held = self._held.get(name)
        if held is None or held.numel() < size:
            held = self._held[name] = torch.empty(size, dtype=torch.uint8)
        return held[:size].view(dtype).view(shape)

    def array(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> np.ndarray:
        """The same as an array."""
        return array(self.tensor(name, shape, dtype))
