"""Gemma Scope 2's params.safetensors: a JumpReLU coder in five tensors, or six with an affine skip, and config.json.

Encoders are [D, F], decoders [F, E], the skip [D, E]. config.json states the sites as Hugging Face module paths; if it
is missing, they are inferred from the folder's name, `transcoder/layer_12_width_16k_l0_small_affine`, as in the
published repositories: there, `attn_out` means the heads' outputs before W_O, and transcoders read the MLP's norm with
its gain. Cross-layer transcoders, which predict all later layers at once, are rejected.

Shape letters: D input width, E output width, F latents.
"""

import re
from pathlib import Path
from typing import Any

from panscope.coders.base import Coder
from panscope.formats.base import Format, ImportedCoder, ImportOptions
from panscope.formats.site_names import (
    exported_names,
    family_of_source,
    find_family,
    site_of_module_path,
    stated_module_paths,
    with_exported,
)
from panscope.formats.untrusted import read_json, read_safetensors
from panscope.formats.weights import (
    AS_JUMPRELU,
    as_jumprelu,
    build_coder,
    resolve_wiring,
    threshold_of,
    weight_sizes,
    wired_coder,
)
from panscope.lms.families import family_of
from panscope.storage.sealed import write_json
from panscope.storage.tensors import write_tensors
from panscope.types import Site, UserError

_CONFIG, _WEIGHTS, _SKIP = "config.json", "params.safetensors", "affine_skip_connection"
_DIMS = {"w_enc": "DF", "b_enc": "F", "w_dec": "FE", "b_dec": "E", "threshold": "F", _SKIP: "DE"}
_RENAMED = {"w_enc": "W_enc", "w_dec": "W_dec", _SKIP: "W_skip"}
_ARCHITECTURES = ("jump_relu", "jumprelu")
_FOLDERS = (
    ("clt", None, None),
    ("transcoder", "mlp_in", "mlp_out"),
    ("resid_post", "resid_post", None),
    ("attn_out", "attn_z", None),
    ("mlp_out", "mlp_out", None),
)
"""Prefixes of folder names, with the kinds of the sites read and predicted."""
_GEMMAS = (family_of("gemma3_text"), family_of("gemma3"))


def _detect(path: Path) -> bool:
    return path.name == _WEIGHTS or (path / _WEIGHTS).is_file()


def _files(path: Path) -> list[Path]:
    file = _file(path)
    return [file.with_name(_CONFIG), file]


def _file(path: Path) -> Path:
    return path if path.name == _WEIGHTS else path / _WEIGHTS


def _read(path: Path, options: ImportOptions) -> ImportedCoder:
    file = _file(path)
    where = file.with_name(_CONFIG)
    config = read_json(where) if where.is_file() else {}
    if config.get("architecture", "jump_relu") not in _ARCHITECTURES:
        raise UserError(f"{str(where)!r}: architecture is {config['architecture']!r}, expected 'jump_relu'")
    read = read_safetensors(file)
    weight_sizes(file, read, _DIMS, optional=_SKIP)
    tensors = {_RENAMED.get(name, name): tensor for name, tensor in read.items()}
    for name in {"W_enc", "W_skip"} & tensors.keys():
        tensors[name] = tensors[name].T.contiguous()
    options = with_exported(options, config, where)
    model = options.model or _model(config, file.absolute())
    points = [config.get("hf_hook_point_in"), config.get("hf_hook_point_out")]
    reads, predicts = (_site(point, model) for point in points)
    if points[0] is None:
        reads, predicts = _sites_of_folder(file)
    if points[1] is not None and predicts is None and options.predicts is None:
        raise UserError(
            f"{str(file)!r} predicts {points[1]!r}, which is not a Panscope site: name the predicted site with "
            "--predicts"
        )
    wiring = resolve_wiring(file, options, reads, predicts, points[0])
    about: dict[str, Any] = {"format": "gemma_scope_2", "source": str(file), "model": model}
    about |= stated_module_paths(wiring, (reads, points[0]), (predicts, points[1]))
    about |= {name: config[name] for name in ("l0", "type") if name in config}
    return ImportedCoder(wired_coder(file, wiring, build_coder(file, "jumprelu", tensors)), about)


def _site(point: Any, model: str | None) -> Site | None:
    """The site of a module path in the model's family, or in Gemma 3 if no model is named.

    For multimodal Gemma 3, published files have the module paths of the text-only model, so both are tried. If the
    family is unknown, the path is resolved only if all families that have such a module agree.
    """
    if not isinstance(point, str):
        return None
    family = find_family(model) if model else _GEMMAS[0]
    families = _GEMMAS if family in _GEMMAS else (family,)
    return next((site for one in families if (site := site_of_module_path(point, one))), None)


def _sites_of_folder(file: Path) -> tuple[Site | None, Site | None]:
    names = file.absolute().parts[-3:-1]
    layer = re.search(r"layer_(\d{1,4})(?!\d)", names[-1])
    for name, reads, predicts in _FOLDERS:
        if any(part.startswith(name) for part in names) and layer:
            if reads is None:
                raise UserError(f"{str(file)!r} is a cross-layer transcoder, which Panscope does not support")
            return Site(int(layer[1]), reads), Site(int(layer[1]), predicts) if predicts else None
    return None, None


def _model(config: dict[str, Any], file: Path) -> str | None:
    """The hub id of the model: published files call google/gemma-3-1b-pt `gemma-v3-1b-pt`."""
    name = config.get("model_name")
    if not isinstance(name, str):
        repository = re.search(r"gemma-scope-2-(\w+)-(pt|it)", str(file))
        name = f"gemma-3-{repository[1]}-{repository[2]}" if repository else None
    if name is None or "/" in name:
        return name
    name = name.replace("gemma-v3", "gemma-3")
    return f"google/{name}" if name.startswith("gemma-3") else name


def _write(foreign: ImportedCoder, folder: Path) -> list[Path]:
    coder = as_jumprelu(foreign.wired, "gemma_scope_2")
    tensors = coder.tensors() | {"threshold": threshold_of(coder)}
    original = {renamed: name for name, renamed in _RENAMED.items()}
    for name in {"W_enc", "W_skip"} & tensors.keys():
        tensors[name] = tensors[name].T.contiguous()
    write_tensors(folder / _WEIGHTS, {original.get(name, name): tensor for name, tensor in tensors.items()})
    write_json(folder / _CONFIG, _config(foreign, coder))
    return [folder / _CONFIG, folder / _WEIGHTS]


def _config(foreign: ImportedCoder, coder: Coder) -> dict[str, Any]:
    """The contents of config.json; if the family is unknown, module paths are those of the imported file, or null."""
    wiring, names = foreign.wired.wiring, exported_names(foreign)
    family = family_of_source(foreign.about)

    def point(site: Site, path: str | None) -> str | None:
        if family and site.kind == "mlp_in":
            return f"{family.blocks}.{site.layer}.{family.mlp_norm}.output"
        return path

    config: dict[str, Any] = {
        "architecture": "jump_relu",
        "width": coder.config.width,
        "model_name": names["model_name"],
        "hf_hook_point_in": point(wiring.reads[0], names["hf_hook_name"]),
        "affine_connection": coder.config.skip,
    }
    if wiring.kind.predicts_other:
        config["hf_hook_point_out"] = point(wiring.predicts[0], names["hf_hook_name_out"])
    return config | {name: names[name] for name in names if name not in config}


GEMMA_SCOPE_2 = Format(
    name="gemma_scope_2",
    description="Gemma Scope 2: params.safetensors, JumpReLU",
    imports=("jumprelu",),
    exports=AS_JUMPRELU,
    needs="--site, without config.json except in the published folders",
    detect=_detect,
    read=_read,
    write=_write,
    files=_files,
)
