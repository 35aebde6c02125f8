"""What the products of the reference step are computed in; weights, moments, losses and selections stay float32.

bfloat16 and float16 go through torch.autocast, whose backward pass follows the types of the forward pass by itself.
tf32 is a mode of NVIDIA's matrix units, which read 10 bits of a float32's fraction: a switch of the whole process, so
it is on for one step, forward and backward, and then as it was.
"""

import contextlib
from collections.abc import Iterator

import torch

from panscope.training.schedule import Precision
from panscope.types import UserError


def check_precision(precision: Precision, device: torch.device, name: str) -> None:
    """Raise UserError if the device has no units for `precision`, which coder `name` asks for."""
    if precision == "tf32" and device.type != "cuda":
        raise UserError(
            f"coder {name}: precision 'tf32' is of NVIDIA's matrix units, and the coder is on {device.type}: "
            "set precision to float32 or bfloat16, or train on a CUDA device"
        )


@contextlib.contextmanager
def forward_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """The products of a forward pass in bfloat16 or float16; otherwise nothing changes."""
    half = precision in ("bfloat16", "float16")
    with torch.autocast(device.type, getattr(torch, precision)) if half else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def step_in(precision: Precision) -> Iterator[None]:
    """float32 products of a whole step read as tf32 where that is asked for; otherwise nothing changes."""
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    if precision == "tf32":
        products.fp32_precision = "tf32"
    try:
        yield
    finally:
        if precision == "tf32":
            products.fp32_precision = before
