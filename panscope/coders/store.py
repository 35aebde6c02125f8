"""A finished coder on disk: `config.json` and `weights.safetensors`, ready for raw activations, no pickle.

`training.safetensors` beside them holds the weights as they were trained, before any transform, with the normaliser
that belongs to them in `config.json`.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from panscope import coders, records
from panscope.coders.base import Coder
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.types import UserError

FORMAT = 1


def save(folder: Path, wired: WiredCoder, as_trained: Coder, provenance: dict[str, Any]) -> None:
    """Write a coder; `provenance` says where it came from and is stored under its own keys."""
    records.write_tensors(folder / "training.safetensors", as_trained.tensors())
    records.write_tensors(folder / "weights.safetensors", wired.coder.tensors())
    config = {
        "format": FORMAT,
        "wiring": wired.wiring.model_dump(mode="json"),
        "coder": wired.coder.config.model_dump(mode="json"),
        "training": {"coder": as_trained.config.model_dump(mode="json")},
    }
    records.write_json(folder / "config.json", config | provenance)


def load(folder: Path) -> WiredCoder:
    """Read a coder back; raises UserError if a file is missing, damaged or of another shape."""
    config = records.read_json(folder / "config.json")
    if config.get("format") != FORMAT:
        raise UserError(f"{str(folder)!r} has format {config.get('format')!r}, expected {FORMAT}")
    where = str(folder / "config.json")
    coder_config = coders.config_type(config["coder"]["architecture"]).read(config["coder"], where)
    coder = coders.build(coder_config)
    tensors = records.read_tensors(folder / "weights.safetensors")
    _check_shapes(tensors, coder.tensors(), folder / "weights.safetensors")
    return WiredCoder(Wiring.read(config["wiring"], where), coder.load_tensors(tensors))


def _check_shapes(tensors: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    for name, tensor in expected.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != tuple(tensor.shape):
            raise UserError(f"{str(path)!r}: tensor {name!r} has shape {found}, expected {tuple(tensor.shape)}")
