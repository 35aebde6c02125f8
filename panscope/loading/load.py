"""Any coder by its path or address: of a run of ours, of another tool, on the hub.

A folder of ours is known by its config.json and weights.safetensors; everything else is one of the foreign formats
(`panscope formats` lists them).
"""

from pathlib import Path

from panscope.coders import files
from panscope.coders.inference import KernelsName
from panscope.config import expanded
from panscope.formats import FORMATS, format_named
from panscope.formats.base import Format, ImportOptions
from panscope.loading import hub
from panscope.loading.loaded_coder import LoadedCoder
from panscope.runs.run import Run
from panscope.types import UserError


def load(
    source: Path | str,
    coder: str | None = None,
    *,
    format: str | None = None,
    asked: ImportOptions | None = None,
    device: str = "cpu",
    kernels: KernelsName = "auto",
    revision: str | None = None,
) -> LoadedCoder:
    """A coder, ready for raw activations: of Gemma Scope (Lieberum et al. 2024), Llama Scope (He et al. 2024), the
    Multi-Layer SAE (Lawson et al. 2024), OpenAI's (Gao et al. 2024) or any other paper with a recipe or format here.

    `source` is a coder's folder of a run (`runs/demo/coders/L03R-8x-topk-k32`), a folder or file of a foreign format,
    or a hub id `org/repo:folder` (its `revision` a branch, tag or commit); or a run, a folder of several, or a hub id
    `org/repo`, with the name of one `coder` of it. A path that exists wins over a hub id. `format` names the foreign
    format, where the files could be of several; `asked` says what they leave open, such as
    `ImportOptions(reads=Site(8, "resid_post"))`; a coder of ours leaves nothing open. `device` is as torch names it, or
    `auto`: `cuda` if there is one. `kernels`: see `LoadedCoder`. Normalisation is folded in or applied, so that rows
    are those of the model. Raises UserError for what is missing, damaged, of no format, or cannot be represented, and
    for a device that is not here.
    """
    path = expanded(source)
    if not path.exists():
        path = hub.fetch(str(source) if coder is None else f"{source}:{coder}", revision)
        coder = None
    elif revision is not None:
        raise UserError(f"revision {revision!r} is set, but {str(source)!r} is here: leave revision out")
    if (path / "suite.toml").is_file():
        path = _of_run(path, coder)
    elif coder is not None:
        path = _of_several(path, coder)
    if format is None and _is_ours(path):
        if asked is not None:
            raise UserError(f"asked is given, but {str(path)!r} is a coder of ours, which says it all: leave asked out")
        config = files.read_config(path)
        loaded = LoadedCoder(path.name, files.load(path, config), config, kernels=kernels, path=path)
    else:
        foreign = _format(path, format).read(path, asked or ImportOptions())
        loaded = LoadedCoder(_name(path), foreign.wired, foreign.about, kernels=kernels, path=path)
    return loaded.to(device)


def _of_run(path: Path, coder: str | None) -> Path:
    """The folder of one coder of a run."""
    run = Run.open(path)
    names = run.coder_names()
    if coder not in names:
        asked = "name one of its coders" if coder is None else f"it has no coder {coder!r}"
        raise UserError(f"{str(path)!r} is a run: {asked}: {', '.join(names) or 'none is finished yet'}")
    return run.coder_folder(coder)


def _of_several(path: Path, coder: str) -> Path:
    """One of several coders in a folder, as `export` and `publish` write them."""
    names = _inside(path)
    if coder not in names:
        have = f"those in it are {', '.join(names)}" if names else "it holds none, and is no run"
        raise UserError(f"{str(path)!r} has no coder {coder!r}: {have}")
    return path / coder


def _inside(path: Path) -> list[str]:
    """The folders of a folder that are coders."""
    children = sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
    return [child.name for child in children if _is_ours(child) or _format_of(child) is not None]


def _is_ours(path: Path) -> bool:
    return (path / "config.json").is_file() and (path / "weights.safetensors").is_file()


def _format(path: Path, name: str | None) -> Format:
    """The foreign format of a file or folder; raises UserError where it is none, or not one that there is."""
    if name is not None:
        return format_named(name)
    found = _format_of(path)
    if found is not None:
        return found
    if names := _inside(path):
        raise UserError(f"{str(path)!r} holds several coders: name one of {', '.join(names)}")
    raise UserError(
        f"{str(path)!r} is no coder of ours and of no known format ({', '.join(FORMATS)}): give the folder of one "
        "coder, or name its format"
    )


def _format_of(path: Path) -> Format | None:
    return next((format for format in FORMATS.values() if format.finds(path)), None)


def _name(path: Path) -> str:
    return path.stem if path.is_file() else path.resolve().name
