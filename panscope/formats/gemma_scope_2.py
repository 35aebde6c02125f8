"""Gemma Scope 2's params.safetensors: a JumpReLU coder in five tensors, or six with an affine skip, and config.json.

Encoders are [D, F], decoders [F, E], the skip [D, E]. config.json names what is read and predicted by Hugging Face
module paths; where it is missing, the folder's name says it, `transcoder/layer_12_width_16k_l0_small_affine`, as in the
published repositories: `attn_out` are the heads' outputs before W_O there, and transcoders read the MLP's norm with its
gain. A cross-layer transcoder predicts all later layers at once and is refused.

Shape letters: D input width, E output width, F latents.
"""

import re
from pathlib import Path
from typing import Any

from panscope import records
from panscope.coders.base import Coder
from panscope.coders.wiring import Wiring
from panscope.formats.base import Asked, Foreign, Format
from panscope.formats.hooks import family_named, module_path, names_of, site_of_module_path
from panscope.formats.untrusted import fit, read_json, read_safetensors
from panscope.formats.weights import as_jumprelu, made, threshold_of, wired_as, wiring_of
from panscope.lms.families import family_of
from panscope.types import Site, UserError

_CONFIG, _WEIGHTS, _SKIP = "config.json", "params.safetensors", "affine_skip_connection"
_DIMS = {"w_enc": "DF", "b_enc": "F", "w_dec": "FE", "b_dec": "E", "threshold": "F", _SKIP: "DE"}
_OURS = {"w_enc": "W_enc", "w_dec": "W_dec", _SKIP: "W_skip"}
_ARCHITECTURES = ("jump_relu", "jumprelu")
_FOLDERS = (
    ("clt", None, None),
    ("transcoder", "mlp_in", "mlp_out"),
    ("resid_post", "resid_post", None),
    ("attn_out", "attn_z", None),
    ("mlp_out", "mlp_out", None),
)
"""What a folder's name says of the sites."""
_GEMMA = family_of("gemma3_text")


def _finds(path: Path) -> bool:
    return path.name == _WEIGHTS or (path / _WEIGHTS).is_file()


def _read(path: Path, asked: Asked) -> Foreign:
    file = path if path.name == _WEIGHTS else path / _WEIGHTS
    where = file.with_name(_CONFIG)
    config = read_json(where) if where.is_file() else {}
    if config.get("architecture", "jump_relu") not in _ARCHITECTURES:
        raise UserError(f"{str(where)!r}: architecture is {config['architecture']!r}, expected 'jump_relu'")
    read = read_safetensors(file)
    fit(file, read, _DIMS, optional=_SKIP)
    tensors = {_OURS.get(name, name): tensor for name, tensor in read.items()}
    for name in {"W_enc", "W_skip"} & tensors.keys():
        tensors[name] = tensors[name].T.contiguous()
    wiring = _wiring(file, asked, config)
    about: dict[str, Any] = {
        "format": "gemma_scope_2",
        "source": str(file),
        "model": asked.model or _model(config, file.absolute()),
    }
    about |= {name: config[name] for name in ("l0", "type") if name in config}
    return Foreign(wired_as(file, wiring, made(file, "jumprelu", tensors)), about)


def _wiring(file: Path, asked: Asked, config: dict[str, Any]) -> Wiring:
    points = [config.get("hf_hook_point_in"), config.get("hf_hook_point_out")]
    reads, predicts = (_site(point) for point in points)
    if points[0] is None:
        reads, predicts = _sites_of_folder(file)
    if points[1] is not None and predicts is None and asked.predicts is None:
        raise UserError(f"{str(file)!r} predicts {points[1]!r}, which is no site of ours: name the site it predicts")
    return wiring_of(file, asked, reads, predicts, points[0])


def _site(point: Any) -> Site | None:
    """Gemma 3 with images has other paths for the same; any other family's are understood where they are its alone."""
    if not isinstance(point, str):
        return None
    return site_of_module_path(point, _GEMMA) or site_of_module_path(point)


def _sites_of_folder(file: Path) -> tuple[Site | None, Site | None]:
    names = file.absolute().parts[-3:-1]
    layer = re.search(r"layer_(\d{1,4})(?!\d)", names[-1])
    for name, reads, predicts in _FOLDERS:
        if any(part.startswith(name) for part in names) and layer:
            if reads is None:
                raise UserError(f"{str(file)!r} is a cross-layer transcoder, which no coder of ours is")
            return Site(int(layer[1]), reads), Site(int(layer[1]), predicts) if predicts else None
    return None, None


def _model(config: dict[str, Any], file: Path) -> str | None:
    """The hub id of the model: `gemma-v3-1b-pt` in the published files is google/gemma-3-1b-pt."""
    name = config.get("model_name")
    if not isinstance(name, str):
        repository = re.search(r"gemma-scope-2-(\w+)-(pt|it)", str(file))
        name = f"gemma-3-{repository[1]}-{repository[2]}" if repository else None
    if name is None or "/" in name:
        return name
    name = name.replace("gemma-v3", "gemma-3")
    return f"google/{name}" if name.startswith("gemma-3") else name


def _write(foreign: Foreign, folder: Path) -> list[Path]:
    coder = as_jumprelu(foreign.wired, "gemma_scope_2")
    tensors = coder.tensors() | {"threshold": threshold_of(coder)}
    theirs = {ours: name for name, ours in _OURS.items()}
    for name in {"W_enc", "W_skip"} & tensors.keys():
        tensors[name] = tensors[name].T.contiguous()
    records.write_tensors(folder / _WEIGHTS, {theirs.get(name, name): tensor for name, tensor in tensors.items()})
    records.write_json(folder / _CONFIG, _config(foreign, coder))
    return [folder / _CONFIG, folder / _WEIGHTS]


def _config(foreign: Foreign, coder: Coder) -> dict[str, Any]:
    wiring, names = foreign.wired.wiring, names_of(foreign)
    model = names["model_name"]
    family = family_named(model if isinstance(model, str) else None, foreign.about.get("model_type")) or _GEMMA

    def point(site: Site) -> str:
        return (
            f"{family.blocks}.{site.layer}.{family.mlp_norm}.output"
            if site.kind == "mlp_in"
            else module_path(site, family)
        )

    config: dict[str, Any] = {
        "architecture": "jump_relu",
        "width": coder.config.width,
        "model_name": model,
        "hf_hook_point_in": point(wiring.reads[0]),
        "affine_connection": coder.config.skip,
    }
    if wiring.wiring == "transcoder":
        config["hf_hook_point_out"] = point(wiring.predicts[0])
    return config | {name: names[name] for name in names if name not in config}


GEMMA_SCOPE_2 = Format("gemma_scope_2", "Gemma Scope 2: params.safetensors, JumpReLU", _finds, _read, _write)
