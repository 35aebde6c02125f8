"""Any coder by its path or address: of a run of ours, of another tool, on the hub.

A folder of ours is known by its config.json and weights.safetensors; everything else is one of the foreign formats
(`panscope formats` lists them).
"""

from pathlib import Path

from panscope import records
from panscope.analysis import hub
from panscope.analysis.loaded import LoadedCoder
from panscope.coders import store
from panscope.coders.inference import KernelsName
from panscope.formats import FORMATS
from panscope.formats.base import Asked, Format
from panscope.types import UserError


def load(
    source: Path | str,
    coder: str | None = None,
    *,
    format: str | None = None,
    asked: Asked | None = None,
    device: str = "cpu",
    kernels: KernelsName = "auto",
    revision: str | None = None,
) -> LoadedCoder:
    """A coder, ready for raw activations: of Gemma Scope (Lieberum et al. 2024), Llama Scope (He et al. 2024), the
    Multi-Layer SAE (Lawson et al. 2024), OpenAI's (Gao et al. 2024) or any other paper with a recipe or format here.

    `source` is a coder's folder of a run (`runs/demo/coders/L03R-8x-topk-k32`), a run with the name of a `coder`, a
    folder or file of a foreign format, or a hub id `org/repo:folder` (its `revision` a branch, tag or commit); a path
    that exists wins over a hub id. `format` names the foreign format, where the files could be of several; `asked` says
    what they leave open, such as `Asked(reads=Site(8, "resid_post"))`; a coder of ours leaves nothing open. `device` is
    as torch names it, or `auto`: `cuda` if there is one. `kernels`: see `LoadedCoder`. Normalisation is folded in or
    applied, so that rows are those of the model. Raises UserError for what is missing, damaged, of no format, or cannot
    be represented, and for a device that is not here.
    """
    path = Path(source).expanduser()
    if not path.exists():
        path = hub.fetch(str(source), revision)
    elif revision is not None:
        raise UserError(f"revision {revision!r} is set, but {str(source)!r} is here: leave revision out")
    if coder is not None or (path / "suite.toml").is_file():
        path = _of_run(path, coder)
    if format is None and _is_ours(path):
        if asked is not None:
            raise UserError(f"asked is given, but {str(path)!r} is a coder of ours, which says it all: leave asked out")
        loaded = LoadedCoder(path.name, store.load(path), store.origin(path), kernels=kernels, path=path)
    else:
        foreign = _format(path, format).read(path, asked or Asked())
        loaded = LoadedCoder(_name(path), foreign.wired, foreign.about, kernels=kernels, path=path)
    return loaded.to(device)


def _of_run(path: Path, coder: str | None) -> Path:
    """The folder of one coder of a run."""
    run = records.RunFolder.open(path)
    names = run.coder_names()
    if coder not in names:
        asked = "name one of its coders" if coder is None else f"it has no coder {coder!r}"
        raise UserError(f"{str(path)!r} is a run: {asked}: {', '.join(names) or 'none is finished yet'}")
    return run.coder(coder)


def _is_ours(path: Path) -> bool:
    return (path / "config.json").is_file() and (path / "weights.safetensors").is_file()


def _format(path: Path, name: str | None) -> Format:
    """The foreign format of a file or folder; raises UserError where it is none, or not one that there is."""
    if name is not None:
        if name not in FORMATS:
            raise UserError(f"format {name!r} is unknown: use one of {', '.join(FORMATS)}")
        return FORMATS[name]
    for format in FORMATS.values():
        if format.finds(path):
            return format
    raise UserError(
        f"{str(path)!r} is no coder of ours and of no known format ({', '.join(FORMATS)}): give the folder of one "
        "coder, or name its format"
    )


def _name(path: Path) -> str:
    return path.stem if path.is_file() else path.resolve().name
