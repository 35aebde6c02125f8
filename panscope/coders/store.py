"""A finished coder on disk: `config.json` and `weights.safetensors`, ready for raw activations, no pickle.

`training.safetensors` beside them holds the weights as they were trained, before any transform, with the normaliser
that belongs to them in `config.json`; a normaliser that cannot be folded stands there under `applies`.
"""

from pathlib import Path
from typing import Any

from panscope import coders, records
from panscope.coders.base import Coder
from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.types import UserError

FORMAT = 2


def save(folder: Path, wired: WiredCoder, as_trained: Coder, provenance: dict[str, Any]) -> None:
    """Write a coder; `provenance` says where it came from and is stored under its own keys."""
    records.write_tensors(folder / "training.safetensors", as_trained.tensors())
    records.write_tensors(folder / "weights.safetensors", wired.coder.tensors())
    config: dict[str, Any] = {
        "format": FORMAT,
        "wiring": wired.wiring.model_dump(mode="json"),
        "coder": wired.coder.config.model_dump(mode="json"),
        "applies": wired.normaliser.model_dump(mode="json"),
        "training": {"coder": as_trained.config.model_dump(mode="json")},
    }
    assert not config.keys() & provenance.keys(), "provenance has keys of its own"
    records.write_json(folder / "config.json", config | provenance)


def load(folder: Path) -> WiredCoder:
    """Read a coder back; raises UserError if a file is missing, damaged or of another shape."""
    path = folder / "config.json"
    config = records.read_json(path)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else config
        raise UserError(f"{str(path)!r} has format {found!r}, expected {FORMAT}; give the folder of a coder")
    fields, wiring, applies = (config.get(name) for name in ("coder", "wiring", "applies"))
    if not (isinstance(fields, dict) and isinstance(wiring, dict) and isinstance(applies, dict)):
        raise UserError(
            f"{str(path)!r} is damaged: 'coder', 'wiring' and 'applies' must be tables; take an undamaged copy"
        )
    coder = coders.build(coders.config_type(fields.get("architecture")).read(fields, str(path)))
    weights = folder / "weights.safetensors"
    try:
        coder.load_tensors(records.read_tensors(weights))
    except UserError as error:
        raise UserError(f"{str(weights)!r}: {error}") from None
    return WiredCoder(Wiring.read(wiring, str(path)), coder, Normaliser.read(applies, str(path)))
