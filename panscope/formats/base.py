"""The interface of a foreign format: how to detect it, how to read a coder from it and how to write one.

A coder read from a foreign file is an `ImportedCoder`: a WiredCoder on raw activations, with the provenance that the
file states. Normalisation is folded into the weights or, if it differs from row to row, kept as a normaliser. Whatever
the files leave open (site, model, K) the user states in `ImportOptions`. A writer takes an `ImportedCoder` and writes a
folder that the other tool's own loader can read.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from panscope.coders.wiring import WiredCoder
from panscope.types import Site


@dataclass(frozen=True)
class ImportOptions:
    """What the user states about foreign files; overrides what the files state."""

    reads: Site | tuple[Site, ...] | None = None
    """The site that the coder reads; several for one multi-layer coder, if the format supports them."""
    predicts: Site | None = None
    """The site that it predicts; None for the one it reads."""
    model: str | None = None
    """The language model: a path or hub id."""
    k: int | None = None
    """K of a TopK coder whose file does not state it."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that the coder reads; empty if they are to be taken from the file."""
        if self.reads is None:
            return ()
        return (self.reads,) if isinstance(self.reads, Site) else self.reads


@dataclass(frozen=True)
class ImportedCoder:
    """One coder from another tool's files."""

    wired: WiredCoder
    """The coder, with the sites it reads and predicts."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Provenance as plain values: `format`, `model`, `source` and whatever else the file states."""


def all_files(path: Path) -> Iterable[Path]:
    """A file, or all files in a folder and below it."""
    return [found for found in path.rglob("*") if found.is_file()] if path.is_dir() else [path]


@dataclass(frozen=True)
class Format:
    """One foreign format."""

    name: str
    """The name as typed on the command line, such as saelens."""
    description: str
    """One line that says what it is."""
    imports: tuple[str, ...]
    """Panscope architectures that its files can be imported as."""
    exports: tuple[str, ...]
    """Panscope architectures that it can represent; batchtopk and matryoshka mostly after conversion to JumpReLU."""
    needs: str
    """The options that `panscope import` requires if the files lack the information; empty if they never do."""
    detect: Callable[[Path], bool]
    """Whether a file or folder looks like one coder of this format, judged by names alone, without loading anything."""
    read: Callable[[Path, ImportOptions], ImportedCoder]
    """Read one coder; raises UserError for files that are unreadable, of another format or not representable."""
    write: Callable[[ImportedCoder, Path], list[Path]]
    """Write into a new or empty folder and return the files; raises UserError for a coder it cannot represent."""
    files: Callable[[Path], Iterable[Path]] = all_files
    """The files that `read` opens for a coder at this path, whether they exist or not; only those are downloaded."""
