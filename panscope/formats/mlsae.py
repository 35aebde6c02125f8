"""Multi-Layer SAEs (Lawson et al. 2025): `config.json` and `model.safetensors`, as saved by huggingface_hub's mixin.

One TopK coder for the residual streams of all layers, without encoder bias: z = TopK(W_enc (x - b_pre)), y = W_dec^T
ReLU(z) + b_pre, for rows that are standardised one by one if the file says so (Panscope's normaliser `standardise`).
A "-tfm" repository has the same tensors under the prefix `autoencoder.`, and the language model, which is not read.

Shape letters: F latents, D width.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from panscope.coders.base import Coder
from panscope.coders.topk import TopKConfig
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.config import Config
from panscope.formats.base import Format, ImportedCoder, ImportOptions
from panscope.formats.shaping import centred, for_raw_rows, is_rounding_error, resolve_k, transposed, unsupported
from panscope.formats.site_names import exported_names
from panscope.formats.untrusted import read_json, read_safetensors, safetensors_shapes
from panscope.formats.weights import build_coder, per_row_normaliser, resolve_wiring, weight_sizes
from panscope.storage.sealed import write_json
from panscope.storage.tensors import write_tensors
from panscope.types import Site, UserError

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_PREFIX = "autoencoder."
_SHAPES = {"encoder.weight": "FD", "decoder.weight": "DF", "pre_encoder_bias": "D"}
_LENSES = ("lens.", "encoder_lens.", "decoder_lens.")
_KEPT = ("auxk", "dead_steps_threshold", "dead_threshold")


class _Stated(Config):
    """The keys of config.json that are used."""

    model_config = ConfigDict(extra="ignore")

    k: int = Field(gt=0)
    n_inputs: int | None = Field(default=None, gt=0)
    n_latents: int | None = Field(default=None, gt=0)
    expansion_factor: int | None = Field(default=None, gt=0)
    standardize: bool = True
    layers: tuple[int, ...] | None = None
    model_name: str | None = None
    lens: bool = False
    tuned_lens: bool = False
    auxk: int | None = None
    dead_steps_threshold: int | None = None
    dead_threshold: float = 1e-3


def detect(path: Path) -> bool:
    """Whether this is a folder with both files; so is a language model's folder, which `read` rejects."""
    return (path / _CONFIG).is_file() and (path / _WEIGHTS).is_file()


def files(path: Path) -> list[Path]:
    """See `Format`."""
    return [path / _CONFIG, path / _WEIGHTS]


def read(path: Path, options: ImportOptions) -> ImportedCoder:
    """See `Format`. Reads a coder of the user's sites, or else of all layers that the file states."""
    stated = _Stated.read(read_json(path / _CONFIG), repr(str(path / _CONFIG)))
    tensors = _tensors(path / _WEIGHTS, stated)
    sizes = weight_sizes(path / _WEIGHTS, tensors, _SHAPES)
    width = stated.n_latents or (stated.expansion_factor or 0) * sizes["D"] or sizes["F"]
    if (stated.n_inputs or sizes["D"], width) != (sizes["D"], sizes["F"]):
        raise UserError(
            f"{str(path)!r}: {_CONFIG} says {width} latents of width {stated.n_inputs}, the weights have {sizes['F']} "
            f"of width {sizes['D']}; take an undamaged copy"
        )
    fields = {"sparsity": resolve_k(path, options.k, stated.k), "pre_encoder_bias": True, "encoder_bias": False}
    converted = {
        "W_enc": tensors["encoder.weight"],
        "b_enc": torch.zeros(sizes["F"]),
        "W_dec": transposed(tensors, "decoder.weight"),
        "b_dec": tensors["pre_encoder_bias"],
    }
    coder = build_coder(path / _WEIGHTS, "topk", converted, **fields)
    about = {"format": "mlsae", "source": str(path), "model": options.model or stated.model_name}
    about |= {key: getattr(stated, key) for key in _KEPT}
    wired = WiredCoder(
        _wiring(path, options, stated), coder, per_row_normaliser("standardise" if stated.standardize else "none")
    )
    return ImportedCoder(wired, about)


def _tensors(file: Path, stated: _Stated) -> dict[str, Tensor]:
    """The tensors of the autoencoder without their prefix; those of the language model are not read."""
    names = list(safetensors_shapes(file))
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in names) else ""
    lenses = [name for name in names if name.removeprefix(prefix).startswith(_LENSES)]
    if stated.lens or stated.tuned_lens or lenses:
        raise UserError(
            f"{str(file)!r} transforms the rows of each layer by a lens before encoding them: Panscope has no such "
            "coder; it is not imported"
        )
    found = read_safetensors(file, lambda name: name.startswith(prefix) if prefix else True)
    return {name.removeprefix(prefix): tensor for name, tensor in found.items() if not name.endswith("last_nonzero")}


def _wiring(path: Path, options: ImportOptions, stated: _Stated) -> Wiring:
    """One coder of the user's sites, or else of all layers that the file states."""
    layers = stated.layers or ()
    if any(layer < 0 for layer in layers):
        raise UserError(f"{str(path)!r}: layers are {list(layers)}, expected numbers from 0; take an undamaged copy")
    sites = tuple(Site(layer, "resid_post") for layer in layers)
    options = replace(options, reads=options.sites or sites)
    return resolve_wiring(path / _CONFIG, options, None, None, several=True)


def write(foreign: ImportedCoder, folder: Path) -> list[Path]:
    """See `Format`. Writes TopK of residual streams, without encoder bias, with raw or standardised rows."""
    wired = foreign.wired
    if wired.normaliser.kind == "token_norm":
        raise unsupported("mlsae", "per-row normalisation ('token_norm')")
    coder = for_raw_rows(wired, "mlsae", ("sae", "multilayer"))
    if not isinstance(coder.config, TopKConfig):
        raise unsupported("mlsae", f"architecture {coder.config.architecture!r}; it only has TopK")
    kinds = {site.kind for site in wired.wiring.reads}
    if kinds != {"resid_post"}:
        raise unsupported("mlsae", f"the site {str(wired.wiring.reads[0])!r}; it only has the residual stream")
    converted = _without_bias(coder)
    tensors = {
        "encoder.weight": converted["W_enc"],
        "decoder.weight": transposed(converted, "W_dec"),
        "pre_encoder_bias": converted["b_dec"],
    }
    write_tensors(folder / _WEIGHTS, tensors, {"format": "pt"})
    write_json(folder / _CONFIG, _config(foreign, coder))
    return [folder / _CONFIG, folder / _WEIGHTS]


def _without_bias(coder: Coder) -> dict[str, Tensor]:
    """The tensors for a tool that subtracts b_dec from the input; raises UserError if an encoder bias remains."""
    tensors, before = centred(coder), coder.tensors()["b_enc"]
    if not is_rounding_error(
        tensors["b_enc"], before if not coder.config.pre_encoder_bias else torch.zeros_like(before)
    ):
        raise unsupported("mlsae", "an encoder bias", "train with encoder_bias = false, or export it as saelens")
    return tensors


def _config(foreign: ImportedCoder, coder: Coder) -> dict[str, Any]:
    """The contents of config.json: the arguments of the class, which ignores other keys."""
    config, about = coder.config, foreign.about
    auxk = about.get("auxk")
    return {
        "layers": [site.layer for site in foreign.wired.wiring.reads],
        "n_inputs": config.d_in,
        "n_latents": config.width,
        "k": int(config.sparsity),
        "dead_steps_threshold": about.get("dead_steps_threshold") or 1000,
        "dead_threshold": about.get("dead_threshold", 1e-3),
        "auxk": auxk if isinstance(auxk, int) else min(256, config.width),
        "standardize": foreign.wired.normaliser.kind == "standardise",
        "lens": False,
        **exported_names(foreign),
    }


MLSAE = Format(
    name="mlsae",
    description="Multi-Layer SAEs: a folder with config.json and model.safetensors",
    imports=("topk",),
    exports=("topk",),
    needs="--site, if config.json has no layers",
    detect=detect,
    read=read,
    write=write,
    files=files,
)
