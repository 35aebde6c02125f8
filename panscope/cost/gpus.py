"""Accelerators by name: memory capacity and peak performance, from `panscope/builtin/facts/gpus.toml`."""

from typing import Literal

from pydantic import Field

from panscope import builtin
from panscope.config import Config, read_toml
from panscope.types import UserError

TABLE = builtin.GPU_FACTS
GIB = 2**30
Precision = Literal["float32", "tf32", "bfloat16", "float16"]


class Gpu(Config):
    """One type of accelerator; the file documents the figures and their sources."""

    name: str
    """Of the device."""
    memory_gb: float = Field(gt=0)
    """Capacity in GiB."""
    bfloat16: float = Field(gt=0)
    """Peak rate of dense matrix products in TFLOP/s, as are the next three."""
    float16: float = Field(gt=0)
    """Peak TFLOP/s of float16 products."""
    tf32: float = Field(gt=0)
    """Peak TFLOP/s of tf32 products."""
    float32: float = Field(gt=0)
    """Peak TFLOP/s of float32 products."""
    bandwidth_gb_s: float = Field(gt=0)
    """Bandwidth of the device's memory, 10^9 bytes per second."""
    host_gb_s: float = Field(gt=0)
    """Bandwidth from the host to one device, 10^9 bytes per second."""
    source: str
    """Where the numbers are from."""

    @property
    def memory_bytes(self) -> int:
        """Memory capacity in bytes."""
        return round(self.memory_gb * GIB)

    def flops(self, precision: Precision) -> float:
        """Peak FLOP/s of a matrix product. float32 means float32, not tf32."""
        return getattr(self, precision) * 1e12


def gpus() -> dict[str, Gpu]:
    """All known accelerators, by name."""
    return {name: Gpu.read({"name": name} | fields, name) for name, fields in read_toml(TABLE).items()}


def gpu_named(name: str) -> Gpu:
    """The accelerator with this name or unique prefix of a name; case, spaces and dashes are ignored.

    Raises UserError, which lists the known names.
    """
    known = gpus()
    exact = [gpu for key, gpu in known.items() if _plain(key) == _plain(name)]
    found = exact or [gpu for key, gpu in known.items() if _plain(name) and _plain(key).startswith(_plain(name))]
    if len(found) != 1:
        what = "is unknown" if not found else "is ambiguous"
        raise UserError(f"gpu {name!r} {what}: use one of {', '.join(known)}")
    return found[0]


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
