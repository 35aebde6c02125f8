"""Gemma Scope's params.npz: a JumpReLU coder in five arrays, with its site in the names of the parent folders.

`<repository>/layer_20/width_16k/average_l0_71/params.npz`, the repository `gemma-scope-2b-pt-res` (`-mlp`, `-att`,
`-transcoders`). Encoders are [D, F], decoders [F, E]; attention coders read the heads' outputs before W_O; transcoders
read the MLP's norm before its gain (Lieberum et al. 2024). Exports by Panscope state their sites in panscope.json in
the same folder. Coders of the embedding are rejected: Panscope has no such site.

Shape letters: D input width, E output width, F latents.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from panscope.formats.base import Format, ImportedCoder, ImportOptions
from panscope.formats.site_names import exported_names, with_exported
from panscope.formats.untrusted import read_json, read_npz
from panscope.formats.weights import (
    AS_JUMPRELU,
    as_jumprelu,
    build_coder,
    resolve_wiring,
    threshold_of,
    weight_sizes,
    wired_coder,
)
from panscope.storage.atomic import replacing
from panscope.storage.sealed import write_json
from panscope.types import Site, UserError

_WEIGHTS, _SITES_FILE = "params.npz", "panscope.json"
_DIMS = {"W_enc": "DF", "b_enc": "F", "W_dec": "FE", "b_dec": "E", "threshold": "F"}
_REPOSITORY = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)")
_KINDS = {"res": "resid_post", "mlp": "mlp_out", "att": "attn_z", "transcoders": "mlp_in_no_gain"}


def _detect(path: Path) -> bool:
    return path.name == _WEIGHTS or (path / _WEIGHTS).is_file()


def _files(path: Path) -> list[Path]:
    file = _file(path)
    return [file, file.with_name(_SITES_FILE)]


def _file(path: Path) -> Path:
    return path if path.name == _WEIGHTS else path / _WEIGHTS


def _read(path: Path, options: ImportOptions) -> ImportedCoder:
    file = _file(path)
    arrays = read_npz(file)
    tensors = {re.sub("^w_", "W_", name): array for name, array in arrays.items()}
    scaling = tensors.pop("scaling_factor", None)
    if scaling is not None and not scaling.eq(1).all():
        raise UserError(f"{str(file)!r} contains a scaling_factor other than 1, which no coder of Gemma Scope has")
    weight_sizes(file, tensors, _DIMS)
    tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    sites_file = file.with_name(_SITES_FILE)
    options = with_exported(options, read_json(sites_file), sites_file) if sites_file.is_file() else options
    stated = _from_folder_names(file.absolute())
    wiring = resolve_wiring(file, options, *stated["sites"])
    about = {"format": "gemma_scope", "source": str(file), "model": options.model or stated.get("model")}
    about |= {name: stated[name] for name in ("l0",) if name in stated}
    l0 = stated.get("l0")
    fields = {"target_l0": l0} if l0 and l0 < len(tensors["b_enc"]) else {}
    return ImportedCoder(wired_coder(file, wiring, build_coder(file, "jumprelu", tensors, **fields)), about)


def _from_folder_names(file: Path) -> dict[str, Any]:
    """The model, the L0 and the sites, as far as the names of the parent folders state them."""
    names = str(file.parent).replace("\\", "/")
    stated: dict[str, Any] = {"sites": (None, None)}
    if l0 := re.search(r"average_l0_(\d+)", names):
        stated["l0"] = float(l0[1])
    repositories = _REPOSITORY.findall(names)
    if not repositories:
        return stated
    size, kind, location = repositories[-1]
    stated["model"] = f"google/gemma-2-{size}" + ("-it" if kind == "it" else "")
    layers = re.findall(r"layer_(\d{1,4})(?!\d)", names)
    if "embedding" in names.rsplit("gemma-scope-", 1)[1]:
        raise UserError(f"{str(file)!r} is a coder of the embedding, which is not a Panscope site: use one of a layer")
    if layers:
        layer = int(layers[-1])
        predicts = Site(layer, "mlp_out") if location == "transcoders" else None
        stated["sites"] = (Site(layer, _KINDS[location]), predicts)
    return stated


def _write(foreign: ImportedCoder, folder: Path) -> list[Path]:
    coder = as_jumprelu(foreign.wired, "gemma_scope")
    if coder.config.skip:
        raise UserError("gemma_scope cannot represent a skip connection: write gemma_scope_2 or saelens instead")
    tensors = coder.tensors() | {"threshold": threshold_of(coder)}
    tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    arrays: dict[str, Any] = {name: tensors[name].cpu().numpy() for name in _DIMS}
    with replacing(folder / _WEIGHTS) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    write_json(folder / _SITES_FILE, exported_names(foreign))
    return [folder / _WEIGHTS, folder / _SITES_FILE]


GEMMA_SCOPE = Format(
    name="gemma_scope",
    description="Gemma Scope: params.npz, JumpReLU",
    imports=("jumprelu",),
    exports=AS_JUMPRELU,
    needs="--site, except in the published folders",
    detect=_detect,
    read=_read,
    write=_write,
    files=_files,
)
