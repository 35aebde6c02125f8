"""Launch parameters: block sizes, warps and number of programs as functions of the width, without autotuning."""

import torch
import triton
from torch import Tensor


def padded(width: int, least: int = 16) -> int:
    """The power of two, at least `least`, that holds `width` columns: the size of a Triton block is a power of two."""
    return max(least, triton.next_power_of_2(width))


def warps(block: int) -> int:
    """Number of warps for a block of that many elements: 16 elements per thread from 2048 elements on, fewer below."""
    return min(16, max(4, block // 512))


def programs(device: torch.device, wanted: int, each: int = 8) -> int:
    """Number of programs, at most `each` per multiprocessor, for kernels whose programs loop over their work."""
    if device.type != "cuda":
        return max(1, min(wanted, 2))
    return max(1, min(wanted, each * torch.cuda.get_device_properties(device).multi_processor_count))


def checked(name: str, tensor: Tensor, *shape: int) -> Tensor:
    """The tensor, after assertions that it has this shape and is contiguous float32, as pointer arithmetic assumes."""
    assert tensor.shape == shape, f"{name} has the shape {tuple(tensor.shape)}, not {shape}"
    assert tensor.dtype == torch.float32, f"{name} is {tensor.dtype}, not float32"
    assert tensor.is_contiguous(), f"{name} is not contiguous"
    return tensor
