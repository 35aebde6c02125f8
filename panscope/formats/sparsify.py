"""EleutherAI's sparsify: TopK autoencoders and transcoders, `cfg.json` and `sae.safetensors` in a folder per hookpoint.

z = TopK(ReLU(W_enc x + b_enc)), with x - b_dec in place of x unless it is a transcoder; y = W_dec^T z + b_dec
(+ W_skip x). The files state neither model nor site: the folder's name is the hookpoint (`layers.3.mlp`), whose output
is predicted and whose input a transcoder reads. Which site a module's output is depends on the model family, so if
families differ, the user must name the model.

Shape letters: F latents, D width, of input and output.
"""

import re
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from panscope.coders.topk import TopKConfig
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.config import Config
from panscope.formats.base import Format, ImportedCoder, ImportOptions
from panscope.formats.shaping import centred, check_raw, for_raw_rows, resolve_k, uncentred, unsupported
from panscope.formats.site_names import (
    exported_names,
    family_of_source,
    find_family,
    hookpoint,
    site_of_hookpoint,
    with_exported,
)
from panscope.formats.untrusted import read_json, read_safetensors
from panscope.formats.weights import build_coder, resolve_wiring, weight_sizes
from panscope.storage.sealed import write_json
from panscope.storage.tensors import write_tensors
from panscope.types import UserError

_CONFIG, _WEIGHTS, _RUN = "cfg.json", "sae.safetensors", "config.json"
_KEPT = ("expansion_factor", "normalize_decoder", "multi_topk")
"""Training settings in the file, kept in `about` so that they can be exported again."""


class _Stated(Config):
    """The keys of cfg.json that are used; other versions have further keys, which are ignored."""

    model_config = ConfigDict(extra="ignore")

    d_in: int = Field(gt=0)
    k: int = Field(gt=0)
    activation: str = "topk"
    num_latents: int = Field(default=0, ge=0)
    expansion_factor: int = Field(default=32, gt=0)
    normalize_decoder: bool = True
    multi_topk: bool = False
    skip_connection: bool = False
    transcode: bool = False
    signed: bool = False
    hookpoint: str | None = None
    """Written by Panscope."""

    def width(self) -> int:
        """F."""
        return self.num_latents or self.d_in * self.expansion_factor


def detect(path: Path) -> bool:
    """Whether this is a folder with both files."""
    return (path / _CONFIG).is_file() and (path / _WEIGHTS).is_file()


def files(path: Path) -> list[Path]:
    """See `Format`."""
    return [path / _CONFIG, path / _WEIGHTS, *(folder / _RUN for folder in _run_folders(path))]


def _run_folders(path: Path) -> tuple[Path, Path]:
    """The folders that may have the run's configuration."""
    return path.absolute().parent, path.absolute().parent.parent


def read(path: Path, options: ImportOptions) -> ImportedCoder:
    """See `Format`."""
    config = read_json(path / _CONFIG)
    stated, options = _Stated.read(config, repr(str(path / _CONFIG))), with_exported(options, config, path / _CONFIG)
    _check_codes(path, stated)
    tensors = read_safetensors(path / _WEIGHTS)
    shapes = {"encoder.weight": "FD", "encoder.bias": "F", "W_dec": "FD", "b_dec": "D"}
    if stated.skip_connection:
        shapes["W_skip"] = "DD"
    sizes = weight_sizes(path / _WEIGHTS, tensors, shapes)
    if (sizes["D"], sizes["F"]) != (stated.d_in, stated.width()):
        raise UserError(
            f"{str(path)!r}: {_CONFIG} says {stated.width()} latents of width {stated.d_in}, the weights have "
            f"{sizes['F']} of width {sizes['D']}; take an undamaged copy"
        )
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc"}
    converted = {names.get(name, name): tensor for name, tensor in tensors.items()}
    k = resolve_k(path, options.k, stated.k)
    coder = build_coder(path / _WEIGHTS, "topk", converted, sparsity=k, pre_encoder_bias=not stated.transcode)
    model = options.model or _run_model(path)
    about = {"format": "sparsify", "source": str(path), "model": model, "hookpoint": _hookpoint(path, stated)}
    about |= {key: getattr(stated, key) for key in _KEPT}
    return ImportedCoder(WiredCoder(_wiring(path, options, stated, model), coder), about)


def _check_codes(path: Path, stated: _Stated) -> None:
    """Raise UserError for codes that Panscope does not support."""
    if stated.signed:
        raise UserError(
            f"{str(path)!r} keeps the signs of its codes (signed: true): Panscope's codes are never negative, so it "
            "would be another coder; it is not imported"
        )
    if stated.activation != "topk":
        raise UserError(
            f"{str(path)!r} has the activation {stated.activation!r}, expected 'topk': Panscope has no coder for it"
        )


def _hookpoint(path: Path, stated: _Stated) -> str:
    """The hookpoint: the name of the folder, or of its parent if there is a folder per seed."""
    folder = path.absolute()
    return stated.hookpoint or (folder.parent if re.fullmatch(r"seed\d+", folder.name) else folder).name


def _run_model(path: Path) -> str | None:
    """The language model, from the configuration of the run in the parent folder or the one above."""
    for folder in _run_folders(path):
        if (folder / _RUN).is_file():
            found = read_json(folder / _RUN)
            if isinstance(found.get("sae"), dict):
                return found["model"] if isinstance(found.get("model"), str) else None
    return None


def _wiring(path: Path, options: ImportOptions, stated: _Stated, model: str | None) -> Wiring:
    """An SAE at the output of the hookpoint, or a transcoder from its input to its output."""
    family, name = find_family(model), _hookpoint(path, stated)
    output = site_of_hookpoint(name, family)
    if not stated.transcode:
        return resolve_wiring(path, options, output, None, name)
    wiring = resolve_wiring(path, options, site_of_hookpoint(name, family, "input"), output, name)
    if not wiring.kind.predicts_other:
        raise UserError(
            f"{str(path)!r} is a transcoder and does not state which site it predicts: name both sites, such as "
            "--site L03.mlp_in --predicts L03.mlp_out"
        )
    return wiring


def write(foreign: ImportedCoder, folder: Path) -> list[Path]:
    """See `Format`. Writes TopK at one site, or from the input of a module to its output, with one width."""
    check_raw(foreign.wired, "sparsify")
    coder = for_raw_rows(foreign.wired, "sparsify", ("sae", "transcoder"), skip=True)
    config = coder.config
    if not isinstance(config, TopKConfig):
        raise unsupported("sparsify", f"architecture {config.architecture!r}; it only has TopK")
    if config.d_in != config.d_out:
        raise unsupported("sparsify", f"inputs of width {config.d_in} with outputs of width {config.d_out}")
    transcodes = foreign.wired.wiring.kind.predicts_other
    tensors = uncentred(coder) if transcodes else centred(coder)
    tensors = {"encoder.weight": tensors.pop("W_enc"), "encoder.bias": tensors.pop("b_enc"), **tensors}
    table = _config(foreign, config, tensors["W_dec"], transcodes=transcodes)
    write_tensors(folder / _WEIGHTS, tensors, {"format": "pt"})
    write_json(folder / _CONFIG, table)
    return [folder / _CONFIG, folder / _WEIGHTS]


def _config(foreign: ImportedCoder, config: TopKConfig, W_dec: Tensor, *, transcodes: bool) -> dict[str, Any]:
    """The contents of cfg.json; its loader drops unknown keys."""
    about = foreign.about
    norms = W_dec.double().norm(dim=1)
    unit = bool(torch.allclose(norms, torch.ones_like(norms), atol=1e-4))
    return {
        "activation": "topk",
        "expansion_factor": about.get("expansion_factor", max(1, config.width // config.d_in)),
        "normalize_decoder": about.get("normalize_decoder", unit),
        "num_latents": config.width,
        "k": int(config.sparsity),
        "multi_topk": about.get("multi_topk", bool(config.multi_coefficient)),
        "skip_connection": config.skip,
        "transcode": transcodes,
        "d_in": config.d_in,
        "hookpoint": _hookpoint_of(foreign),
        **exported_names(foreign),
    }


def _hookpoint_of(foreign: ImportedCoder) -> str | None:
    """The hookpoint: the module whose output is predicted, and whose input a transcoder reads.

    If the model family is unknown, it is the hookpoint of the imported file, provided that it names the layer and does
    not denote another site. None for a site that is not a module's output; raises UserError for a transcoder whose
    sites are not the input and output of one module.
    """
    wiring, family = foreign.wired.wiring, family_of_source(foreign.about)
    reads, predicts = wiring.reads[0], wiring.predicts[0]
    name = hookpoint(predicts, family) if family else _imported_hookpoint(foreign, predicts.layer)
    ends = {"output": predicts} | ({"input": reads} if wiring.kind.predicts_other else {})
    unknown = () if family else (None,)
    if name and all(site_of_hookpoint(name, family, end) in (site, *unknown) for end, site in ends.items()):
        return name
    if wiring.kind.predicts_other:
        model = f"of the family {family.name}" if family else "of a model of unknown family"
        what = (
            f"a transcoder from {reads} to {predicts} {model}, where no module is known to have this input and output"
        )
        raise unsupported("sparsify", what, "name the model it belongs to, or export it as saelens")
    return None


def _imported_hookpoint(foreign: ImportedCoder, layer: int) -> str | None:
    name = foreign.about.get("hookpoint")
    return name if isinstance(name, str) and str(layer) in name.split(".") else None


SPARSIFY = Format(
    name="sparsify",
    description="EleutherAI's sparsify: a folder with cfg.json and sae.safetensors",
    imports=("topk",),
    exports=("topk",),
    needs="--site, if the folder is not named after its hookpoint",
    detect=detect,
    read=read,
    write=write,
    files=files,
)
