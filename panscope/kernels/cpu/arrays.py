"""Conversion of tensors to arrays, and buffers that are reused between calls.

First access to newly allocated memory costs far more than the computation in it, so each thread keeps its buffers.
"""

import math
import threading

import numpy as np
import torch
from torch import Tensor


def array(tensor: Tensor) -> np.ndarray:
    """A tensor as a contiguous array, not copied if it is contiguous already; bfloat16 as int16."""
    tensor = tensor.detach().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


class Buffers(threading.local):
    """Named buffers of each thread; requesting a buffer again invalidates its previous content."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The buffer as an uninitialised tensor of this shape."""
        size = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=torch.uint8)
        return buffer[:size].view(dtype).view(shape)

    def array(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> np.ndarray:
        """The buffer as an uninitialised array of this shape."""
        return array(self.tensor(name, shape, dtype))
