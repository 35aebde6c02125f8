"""Tensors on disk: safetensors files, written atomically and verified against a checksum when they are read."""

from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from panscope.storage.atomic import UNDAMAGED_COPY, checksum, reading, replacing
from panscope.types import UserError


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        safetensors.torch.save_file(contiguous, temporary, metadata)


def read_tensors(path: Path, xxh3: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; raises UserError if missing, damaged or not of checksum `xxh3`."""
    if xxh3 is not None and checksum(path) != xxh3:
        raise UserError(f"the file {str(path)!r} is damaged: it does not match its checksum; {UNDAMAGED_COPY}")
    try:
        with reading(path):
            return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise UserError(f"the file {str(path)!r} is damaged and is not safetensors: {error}") from None
