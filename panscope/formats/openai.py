"""OpenAI's GPT-2 autoencoders (Gao et al. 2024): one `.pt` file, a state dict that includes the activation function.

h = W_enc (x - pre_bias) + latent_bias, followed by ReLU of raw rows, or by TopK of rows standardised one by one: as in
the tool itself, TopK implies standardised rows and ReLU raw rows. The file does not state its site; published files are
in `<location>/autoencoders/<layer>.pt`, and exports by Panscope have a `<layer>.json` in the same folder. The running
statistics of training are dropped; an exported file has those of a new coder.

Shape letters: F latents, D width.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panscope.coders.base import Coder
from panscope.coders.topk import TopKConfig
from panscope.coders.wiring import WiredCoder
from panscope.formats.base import Format, ImportedCoder, ImportOptions
from panscope.formats.shaping import centred, for_raw_rows, resolve_k, transposed, unsupported
from panscope.formats.site_names import exported_names, with_exported
from panscope.formats.untrusted import read_json, read_pt
from panscope.formats.weights import build_coder, per_row_normaliser, resolve_wiring, weight_sizes
from panscope.storage.atomic import replacing
from panscope.storage.sealed import write_json
from panscope.types import Site, UserError

_SHAPES = {"pre_bias": "D", "latent_bias": "F", "encoder.weight": "FD", "decoder.weight": "DF"}
_STATISTICS = {
    "stats_last_nonzero": torch.int64,
    "latents_activation_frequency": torch.float32,
    "latents_mean_square": torch.float32,
}
_LOCATIONS = {"resid_delta_attn": "attn_out", "resid_delta_mlp": "mlp_out", "resid_post_mlp": "resid_post"}
_LOCATION = re.compile(rf"({'|'.join(_LOCATIONS)})(?:_v\d+.*)?")
_SIGNED = {"pre_bias", "encoder_bias", "encoder_weights", "decoder_weights"}
_MODEL = "openai-community/gpt2"
_LAYER = r"\d{1,4}"
"""The name of a published file."""
_SITES_SUFFIX = ".json"
"""The suffix of the second file of an export, which states the site."""


def detect(path: Path) -> bool:
    """Whether this is a .pt file named after its layer, as published, or a folder with one such file.

    Files with other names can be read if the user names the format.
    """
    file = _file(path)
    return file is not None and re.fullmatch(_LAYER, file.stem) is not None


def _file(path: Path) -> Path | None:
    """The .pt file, if `path` is one or is a folder with exactly one."""
    files = [found for found in sorted(path.glob("*.pt")) if found.is_file()] if path.is_dir() else [path]
    return files[0] if len(files) == 1 and files[0].suffix == ".pt" and files[0].is_file() else None


def files(path: Path) -> list[Path]:
    """See `Format`."""
    file = _file(path)
    return [] if file is None else [file, file.with_suffix(_SITES_SUFFIX)]


def read(path: Path, options: ImportOptions) -> ImportedCoder:
    """See `Format`."""
    file = _file(path)
    if file is None:
        raise UserError(f"{str(path)!r} is neither a .pt file nor a folder with exactly one: give the file")
    found = read_pt(file)
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if tensors.keys() == _SIGNED:
        raise UserError(
            f"{str(file)!r} is a TopK coder that keeps the signs of its codes: Panscope's codes are never negative, so "
            "it would be another coder; it is not imported"
        )
    statistics = dict.fromkeys(_STATISTICS, "F")
    optional = " ".join(statistics)
    weight_sizes(file, tensors, _SHAPES | statistics, optional=optional, counts="stats_last_nonzero")
    k = _k(file, options, found)
    weights = {
        "W_enc": tensors["encoder.weight"],
        "b_enc": tensors["latent_bias"],
        "W_dec": transposed(tensors, "decoder.weight"),
        "b_dec": tensors["pre_bias"],
    }
    coder = build_coder(file, "relu" if k is None else "topk", weights, sparsity=k or 1.0, pre_encoder_bias=True)
    site, sites_file = _site(file), file.with_suffix(_SITES_SUFFIX)
    options = with_exported(options, read_json(sites_file), sites_file) if sites_file.is_file() else options
    model = options.model or (_MODEL if site else None)
    about = {"format": "openai", "source": str(path), "model": model}
    normaliser = per_row_normaliser("none" if k is None else "standardise")
    return ImportedCoder(WiredCoder(resolve_wiring(file, options, site, None), coder, normaliser), about)


def _k(file: Path, options: ImportOptions, found: dict[str, Any]) -> int | None:
    """K for TopK, None for ReLU; raises UserError for codes that Panscope does not support."""
    activation = found.get("activation", "ReLU")
    if activation == "ReLU":
        return None
    state = found.get("activation_state_dict")
    state = state if isinstance(state, dict) else {}
    after = state.get("postact_fn", "ReLU")
    if activation != "TopK" or after != "ReLU":
        name = f"TopK with {after}" if activation == "TopK" else activation
        raise UserError(
            f"{str(file)!r} has the activation {name!r}, expected 'ReLU' or 'TopK' with ReLU: Panscope's codes are "
            "never negative, so it would be another coder; it is not imported"
        )
    return resolve_k(file, options.k, state.get("k"))


def _site(file: Path) -> Site | None:
    """The site from the published layout: the location is a folder's name, the layer the file's name."""
    matches = [_LOCATION.fullmatch(part) for part in file.absolute().parts[:-1]]
    found = [match[1] for match in matches if match]
    if not found or not re.fullmatch(_LAYER, file.stem):
        return None
    return Site(int(file.stem), _LOCATIONS[found[-1]])


def write(foreign: ImportedCoder, folder: Path) -> list[Path]:
    """See `Format`. Writes ReLU of raw rows or TopK of standardised rows, as `<layer>.pt` with `<layer>.json`."""
    wired = foreign.wired
    coder = for_raw_rows(wired, "openai")
    activation = _activation(coder, wired.normaliser.kind)
    weights = centred(coder)
    config = coder.config
    state: dict[str, Any] = {
        "pre_bias": weights["b_dec"],
        "latent_bias": weights["b_enc"],
        "stats_last_nonzero": torch.zeros(config.width, dtype=torch.int64),
        "latents_activation_frequency": torch.ones(config.width),
        "latents_mean_square": torch.zeros(config.width),
        "encoder.weight": weights["W_enc"],
        "decoder.weight": transposed(weights, "W_dec"),
        "activation": activation,
        "activation_state_dict": {"k": int(config.sparsity), "postact_fn": "ReLU"} if activation == "TopK" else {},
    }
    file = folder / f"{wired.wiring.reads[0].layer}.pt"
    with replacing(file) as temporary, temporary.open("wb") as stream:
        torch.save(state, stream)
    write_json(file.with_suffix(_SITES_SUFFIX), exported_names(foreign))
    return [file, file.with_suffix(_SITES_SUFFIX)]


def _activation(coder: Coder, kind: str) -> str:
    """The tool's name of the activation function; raises UserError if it would read the file as another coder."""
    if coder.config.architecture == "relu" and kind == "none":
        return "ReLU"
    if isinstance(coder.config, TopKConfig) and kind == "standardise":
        return "TopK"
    rows = "raw rows" if kind == "none" else f"rows normalised by {kind!r}"
    raise unsupported(
        "openai", f"{coder.config.architecture!r} on {rows}; it has ReLU on raw rows and TopK on standardised rows"
    )


OPENAI = Format(
    name="openai",
    description="OpenAI's GPT-2 autoencoders: one .pt file per coder",
    imports=("relu", "topk"),
    exports=("relu", "topk"),
    needs="--site, except in the published folders; --k for TopK, if the file does not state it",
    detect=detect,
    read=read,
    write=write,
    files=files,
)
