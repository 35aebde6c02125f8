"""Loading a coder by its path or hub address: from a Panscope run, from another tool, or from the hub.

A Panscope coder is detected by its config.json and weights.safetensors; anything else must be in one of the foreign
formats (`panscope formats` lists them).
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
    options: ImportOptions | None = None,
    device: str = "cpu",
    kernels: KernelsName = "auto",
    revision: str | None = None,
) -> LoadedCoder:
    """Load a coder for raw activations: one trained by Panscope, or one from Gemma Scope (Lieberum et al. 2024), Llama
    Scope (He et al. 2024), the Multi-Layer SAE (Lawson et al. 2024), OpenAI (Gao et al. 2024) or any other supported
    format.

    `source` is the folder of a coder in a run (`runs/demo/coders/L03R-8x-topk-k32`), a folder or file in a foreign
    format, or a hub id `org/repo:folder` (`revision` is a branch, tag or commit). It may also be a run, a folder of
    several coders or a hub id `org/repo`; `coder` then names one of its coders. A path that exists takes precedence
    over a hub id. `format` names the foreign format if it cannot be detected; `options` state what the foreign files
    leave open, such as `ImportOptions(reads=Site(8, "resid_post"))`. `device` is a torch device, or `auto`: `cuda` if
    available. `kernels`: see `LoadedCoder`. Normalisation is folded into the weights or applied, so that inputs are
    the model's own activations. Raises UserError for a source that is missing, damaged, of an unknown format or not
    representable, and for an unavailable device.
    """
    path = expanded(source)
    if not path.exists():
        path = hub.fetch(str(source) if coder is None else f"{source}:{coder}", revision)
        coder = None
    elif revision is not None:
        raise UserError(f"revision {revision!r} is set, but {str(source)!r} is a local path: omit revision")
    if (path / "suite.toml").is_file():
        path = _of_run(path, coder)
    elif coder is not None:
        path = _of_several(path, coder)
    if format is None and _is_ours(path):
        if options is not None:
            raise UserError(
                f"options are given, but {str(path)!r} is a Panscope coder, which states all of them: omit options"
            )
        config = files.read_config(path)
        loaded = LoadedCoder(path.name, files.load(path, config), config, kernels=kernels, path=path)
    else:
        foreign = _format(path, format).read(path, options or ImportOptions())
        loaded = LoadedCoder(_name(path), foreign.wired, foreign.about, kernels=kernels, path=path)
    return loaded.to(device)


def _of_run(path: Path, coder: str | None) -> Path:
    """The folder of one coder of a run."""
    run = Run.open(path)
    names = run.coder_names()
    if coder not in names:
        reason = "name one of its coders" if coder is None else f"it has no coder {coder!r}"
        raise UserError(f"{str(path)!r} is a run: {reason}: {', '.join(names) or 'none is finished yet'}")
    return run.coder_folder(coder)


def _of_several(path: Path, coder: str) -> Path:
    """The folder of one coder in a folder of several, as `export` and `publish` write them."""
    names = _coder_folders(path)
    if coder not in names:
        have = f"its coders are {', '.join(names)}" if names else "it contains none, and is not a run"
        raise UserError(f"{str(path)!r} has no coder {coder!r}: {have}")
    return path / coder


def _coder_folders(path: Path) -> list[str]:
    """The names of the subfolders that are coders."""
    children = sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
    return [child.name for child in children if _is_ours(child) or _format_of(child) is not None]


def _is_ours(path: Path) -> bool:
    return (path / "config.json").is_file() and (path / "weights.safetensors").is_file()


def _format(path: Path, name: str | None) -> Format:
    """The foreign format of a file or folder, by name or detected; raises UserError if it is unknown."""
    if name is not None:
        return format_named(name)
    found = _format_of(path)
    if found is not None:
        return found
    if names := _coder_folders(path):
        raise UserError(f"{str(path)!r} contains several coders: name one of {', '.join(names)}")
    raise UserError(
        f"{str(path)!r} is neither a Panscope coder nor in a known format ({', '.join(FORMATS)}): give the folder of "
        "one coder, or name its format"
    )


def _format_of(path: Path) -> Format | None:
    return next((format for format in FORMATS.values() if format.detect(path)), None)


def _name(path: Path) -> str:
    return path.stem if path.is_file() else path.resolve().name
