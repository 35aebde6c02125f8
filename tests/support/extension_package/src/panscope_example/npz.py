"""A coder as one NumPy archive: its four arrays and its site, for a tool that has nothing but NumPy."""

from pathlib import Path

import numpy as np
import torch

from panscope import coders
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.formats import Format, ImportedCoder, ImportOptions
from panscope.types import Site, UserError

_ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec")
_FILE = "coder.npz"


def _read(path: Path, options: ImportOptions) -> ImportedCoder:
    file = path / _FILE if path.is_dir() else path
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: torch.from_numpy(archive[name]) for name in _ARRAYS}
            site = Site.parse(str(archive["site"]))
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{str(file)!r} is not a coder of the format npz: {error}") from None
    n_latents, d_in = arrays["W_enc"].shape
    fields = {"d_in": d_in, "d_out": d_in, "width": n_latents, "sparsity": 1.0, "decoder_norm": "free"}
    coder = coders.build(coders.config_type("relu").read(fields, str(file))).load_tensors(arrays)
    sites = options.sites or (site,)
    return ImportedCoder(WiredCoder(Wiring(wiring="sae", reads=sites, predicts=sites), coder), {"model": options.model})


def _write(imported: ImportedCoder, folder: Path) -> list[Path]:
    wired = imported.wired
    if wired.coder.config.architecture not in ("relu", "logrelu") or wired.wiring.wiring != "sae":
        raise UserError("the format npz holds ReLU coders of one site alone: choose another format")
    tensors = wired.coder.tensors()
    arrays = {name: tensors[name].numpy() for name in _ARRAYS}
    np.savez(folder / _FILE, **arrays, site=np.array(str(wired.wiring.reads[0])))  # pyright: ignore[reportArgumentType]
    return [folder / _FILE]


NPZ = Format(
    name="npz",
    description="one NumPy archive a coder (an example)",
    imports=("relu",),
    exports=("relu", "logrelu"),
    needs="--model",
    detect=lambda path: (path / _FILE).is_file() or path.name == _FILE,
    read=_read,
    write=_write,
)
