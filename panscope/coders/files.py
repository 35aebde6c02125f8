"""A finished coder on disk: `config.json` and `weights.safetensors`, ready for raw activations, no pickle.

`training.safetensors` beside them holds the weights as they were trained, before any transform, with the normaliser
that belongs to them in `config.json`; a normaliser that cannot be folded is there under `applies`. `config.json`
carries a checksum of itself and of both files of weights, so that no damaged number is ever used.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panscope import coders
from panscope.coders.base import Coder
from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.storage.atomic import checksum
from panscope.storage.sealed import read_json, unsealed, write_sealed
from panscope.storage.tensors import read_tensors, write_tensors
from panscope.types import UserError

FORMAT = 4
CONFIG, WEIGHTS, _TRAINING = "config.json", "weights.safetensors", "training.safetensors"


def save(folder: Path, wired: WiredCoder, as_trained: Coder, provenance: dict[str, Any]) -> None:
    """Write a coder; `provenance` says where it came from and is stored under its own keys."""
    write_tensors(folder / _TRAINING, as_trained.tensors())
    write_tensors(folder / WEIGHTS, wired.coder.tensors())
    config: dict[str, Any] = {
        "format": FORMAT,
        "wiring": wired.wiring.model_dump(mode="json"),
        "coder": wired.coder.config.model_dump(mode="json"),
        "applies": wired.normaliser.model_dump(mode="json"),
        "training": {"coder": as_trained.config.model_dump(mode="json")},
        "xxh3": {name: checksum(folder / name) for name in (WEIGHTS, _TRAINING)},
    }
    assert not config.keys() & provenance.keys(), "provenance has keys of its own"
    write_sealed(folder / CONFIG, config | provenance)


def load(folder: Path, config: Mapping[str, Any] | None = None) -> WiredCoder:
    """Read a coder back; raises UserError if a file is missing, damaged or of another shape.

    `config` is what `read_config` gave, where the caller has read it.
    """
    config, path = config or read_config(folder), str(folder / CONFIG)
    coder = _coder(folder, WEIGHTS, config, config["coder"])
    return WiredCoder(Wiring.read(config["wiring"], path), coder, Normaliser.read(config["applies"], path))


def load_as_trained(folder: Path, config: Mapping[str, Any] | None = None) -> Coder:
    """The coder as it was trained, for rows that its normaliser in `config.json` has normalised; raises as `load`."""
    config = config or read_config(folder)
    return _coder(folder, _TRAINING, config, config["training"]["coder"])


def load_trained(folder: Path, config: Mapping[str, Any] | None = None) -> WiredCoder:
    """The coder as it was trained, with its normaliser, at its sites; raises as `load`."""
    config, path = config or read_config(folder), str(folder / CONFIG)
    wiring, normaliser = Wiring.read(config["wiring"], path), Normaliser.read(config["normaliser"], path)
    return WiredCoder(wiring, load_as_trained(folder, config), normaliser)


def knows_sparsity(config: Mapping[str, Any]) -> bool:
    """Whether the `sparsity` in a config.json is what the coder was trained with.

    Other tools' files have K, but no coefficient of a penalty: then `sparsity` has no meaning.
    """
    trained = coders.config_type(config["training"]["coder"]["architecture"])
    return not config.get("origin") or trained.selects_k


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json says: the coder, where it came from, the checksums of its weights; raises as `load`."""
    path = folder / CONFIG
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        seen = found.get("format") if isinstance(found, dict) else None
        raise UserError(
            f"{str(path)!r} has format {seen!r}, expected {FORMAT}; give the folder of a coder of this version"
        )
    config = unsealed(path, found)
    tables = ("coder", "wiring", "applies", "training", "xxh3")
    if not all(isinstance(config.get(name), dict) for name in tables):
        raise UserError(f"{str(path)!r} is damaged: {', '.join(tables)} must be tables; take an undamaged copy")
    return config


def _coder(folder: Path, name: str, config: Mapping[str, Any], fields: dict[str, Any]) -> Coder:
    """The coder that `fields` describe, with the weights of file `name`."""
    coder = coders.build(coders.config_type(fields.get("architecture")).read(fields, str(folder / CONFIG)))
    weights = read_tensors(folder / name, xxh3=config["xxh3"].get(name, ""))
    try:
        return coder.load_tensors(weights)
    except UserError as error:
        raise UserError(f"{str(folder / name)!r}: {error}") from None
