"""How wide a program is and how many warps run it: plain functions of a width, so that nothing is tuned at run time."""

import torch
import triton
from torch import Tensor


def padded(width: int, least: int = 16) -> int:
    """The power of two that holds `width` columns: Triton's blocks have no other sizes."""
    return max(least, triton.next_power_of_2(width))


def warps(block: int) -> int:
    """Warps for a block of that many elements: 16 elements a thread from 2048 elements on, fewer below."""
    return min(16, max(4, block // 512))


def programs(device: torch.device, wanted: int, each: int = 8) -> int:
    """At most `each` programs a multiprocessor, for kernels whose programs walk through work of unknown length."""
    if device.type != "cuda":
        return max(1, min(wanted, 2))
    return max(1, min(wanted, each * torch.cuda.get_device_properties(device).multi_processor_count))


def checked(name: str, tensor: Tensor, *shape: int) -> Tensor:
    """The tensor, after a check that it is what pointer arithmetic takes it for."""
    assert tensor.shape == shape, f"{name} is {tuple(tensor.shape)}, not {shape}"
    assert tensor.dtype == torch.float32, f"{name} is {tensor.dtype}, not float32"
    assert tensor.is_contiguous(), f"{name} is not contiguous"
    return tensor
