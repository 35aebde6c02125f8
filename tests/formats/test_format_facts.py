"""The output of `panscope formats` agrees with what each reader and writer supports."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from panscope import coders
from panscope.coders.base import Coder
from panscope.coders.wiring import UNIT
from panscope.formats import FORMATS, ImportOptions
from panscope.types import UserError
from tests.support.hostile import read_tensors, write_tensors
from tests.support.making import RESID, STANDARDISE, foreign, random_coder


def suited(format: str, architecture: str) -> tuple[Coder, Any]:
    """A coder with its normaliser, without features that the format cannot represent for any architecture."""
    fields = {"pre_encoder_bias": True, "encoder_bias": False} if format == "mlsae" else {}
    coder = random_coder(architecture, **fields)
    tensors = coder.tensors()
    if format == "llama_scope" and "threshold" in tensors:
        coder.load_tensors(tensors | {"threshold": torch.full_like(tensors["threshold"], 0.5)})
    return coder, STANDARDISE if (format, architecture) == ("openai", "topk") else UNIT


def written(format: str, architecture: str, folder: Path) -> list[Path]:
    coder, normaliser = suited(format, architecture)
    return FORMATS[format].write(foreign(coder, normaliser=normaliser), folder)


@pytest.mark.parametrize("architecture", coders.ARCHITECTURES)
@pytest.mark.parametrize("format", FORMATS)
def test_exports_are_what_it_writes(format: str, architecture: str, tmp_path: Path) -> None:
    """The exported files are also read as one of the format's imports."""
    if architecture not in FORMATS[format].exports:
        with pytest.raises(UserError, match=f"'{architecture}'|architecture"):
            written(format, architecture, tmp_path / "theirs")
        return
    written(format, architecture, tmp_path / "theirs")
    again = FORMATS[format].read(tmp_path / "theirs", ImportOptions())
    assert again.wired.coder.config.architecture in FORMATS[format].imports


@pytest.mark.parametrize("format", FORMATS)
def test_imports_are_what_it_reads(format: str, tmp_path: Path) -> None:
    """Llama Scope's other two architectures are from older code and cannot be exported."""
    own, found = FORMATS[format], set()
    for architecture in own.exports:
        files = written(format, architecture, tmp_path / architecture)
        found.add(own.read(tmp_path / architecture, ImportOptions()).wired.coder.config.architecture)
        if format == "llama_scope":
            config = next(file for file in files if file.name == "hyperparams.json")
            for act in ({"act_fn": "relu"}, {"act_fn": "topk", "jump_relu_threshold": 0, "top_k": 4}):
                config.write_text(json.dumps(json.loads(config.read_text()) | act))
                found.add(own.read(tmp_path / architecture, ImportOptions()).wired.coder.config.architecture)
    assert found == set(own.imports)


def edited(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A change of one JSON file."""

    def edit(folder: Path) -> None:
        fields = json.loads((folder / name).read_text())
        change(fields)
        (folder / name).write_text(json.dumps(fields))

    return edit


def _nowhere(folder: Path) -> None:
    for path in folder.glob("*.json"):
        path.unlink()


def _without_hookpoint(fields: dict[str, Any]) -> None:
    fields.pop("hookpoint")


STRANGERS: dict[str, Callable[[Path], None]] = {
    "saelens": lambda folder: None,
    "gemma_scope": _nowhere,
    "gemma_scope_2": _nowhere,
    "llama_scope": lambda folder: None,
    "sparsify": edited("cfg.json", _without_hookpoint),
    "dictionary_learning": edited("config.json", lambda fields: fields["trainer"].update(submodule_name="mlp")),
    "mlsae": edited("config.json", lambda fields: fields.pop("layers")),
    "openai": _nowhere,
}
"""Keys of Panscope's exports that files from other tools lack."""


def _without_our_names(folder: Path) -> None:
    for path in folder.rglob("*.json"):
        fields = json.loads(path.read_text())
        for table in (fields, fields.get("metadata") or {}):
            table.pop("panscope", None)
        path.write_text(json.dumps(fields))


@pytest.mark.parametrize("format", FORMATS)
def test_needs_say_whether_a_site_must_be_told(format: str, tmp_path: Path) -> None:
    own, folder = FORMATS[format], tmp_path / "theirs"
    written(format, own.exports[-1] if format == "openai" else own.exports[0], folder)
    _without_our_names(folder)
    STRANGERS[format](folder)
    if "--site" not in own.needs:
        assert own.read(folder, ImportOptions()).wired.wiring.reads == (RESID,)
        return
    with pytest.raises(UserError, match="name the site that it reads"):
        own.read(folder, ImportOptions())
    assert own.read(folder, ImportOptions(reads=RESID)).wired.wiring.reads == (RESID,)


@pytest.mark.parametrize("format", ["dictionary_learning", "openai"])
def test_needs_say_whether_k_must_be_told(format: str, tmp_path: Path) -> None:
    own, folder = FORMATS[format], tmp_path / "theirs"
    (file, *_) = [path for path in written(format, "topk", folder) if path.suffix == ".pt"]
    tables = read_tensors(file)
    tables.pop("k", None)
    if format == "openai":
        tables["activation_state_dict"] = {}
    write_tensors(file, tables)
    if format == "dictionary_learning":
        edited("config.json", lambda fields: fields["trainer"].pop("k"))(folder)
    assert "--k" in own.needs
    with pytest.raises(UserError, match="--k"):
        own.read(folder, ImportOptions())
    assert own.read(folder, ImportOptions(k=3)).wired.coder.config.sparsity == 3


def test_the_others_always_have_their_k() -> None:
    assert {name for name, own in FORMATS.items() if "--k" in own.needs} == {"dictionary_learning", "openai"}
