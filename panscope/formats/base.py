"""What a foreign format is: how to tell it, how to read a coder of it, how to write one.

A coder read from a foreign file is an `ImportedCoder`: a WiredCoder on raw activations, and the provenance that the
file states. Normalisation is folded into the weights or, where it differs from row to row, kept beside them. What a
format leaves open (at which site, of which model, with which K) the user states in `ImportOptions`. A writer gets an
`ImportedCoder` and writes a folder that the other tool's own loader takes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from panscope.coders.wiring import WiredCoder
from panscope.types import Site


@dataclass(frozen=True)
class ImportOptions:
    """What the user says of foreign files that they do not say themselves, or says otherwise."""

    reads: Site | tuple[Site, ...] | None = None
    """The site that the coder reads; several for one coder of all of them, where the format has such."""
    predicts: Site | None = None
    """The site that it predicts; None for the one it reads."""
    model: str | None = None
    """The language model: a path or hub id."""
    k: int | None = None
    """K of a TopK coder whose file does not say it."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """What the coder reads: none where the file is to say it."""
        if self.reads is None:
            return ()
        return (self.reads,) if isinstance(self.reads, Site) else self.reads


@dataclass(frozen=True)
class ImportedCoder:
    """One coder of another tool."""

    wired: WiredCoder
    about: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from, as plain values: `format`, `model`, `source` and whatever else the file says of it."""


@dataclass(frozen=True)
class Format:
    """One foreign format."""

    name: str
    """What the user types, such as saelens."""
    says: str
    """What it is, in one line."""
    imports: tuple[str, ...]
    """Our architectures that its files are read as."""
    exports: tuple[str, ...]
    """Our architectures that it has a place for; batchtopk and matryoshka mostly as the JumpReLU they end as."""
    needs: str
    """What `panscope import` must be told where the files do not say it; empty where they always do."""
    finds: Callable[[Path], bool]
    """Whether a file or folder looks like one coder of this format, from names alone: nothing is loaded."""
    read: Callable[[Path, ImportOptions], ImportedCoder]
    """Raises UserError, one sentence, for whatever cannot be read, is not of this format or cannot be represented."""
    write: Callable[[ImportedCoder, Path], list[Path]]
    """Write into a new or empty folder; the files written. Raises UserError for a coder the format has no place for."""
