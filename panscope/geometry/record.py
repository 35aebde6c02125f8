"""What geometry leaves in a run folder: Parquet tables, and one sealed summary that names them with their checksums.

An analysis is entered as soon as its tables are written, so a stop loses only the one under way. Entered again, it
takes the place of its older self; what was made of weights that have changed since is taken out.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from torch import Tensor

from panscope.storage.atomic import checksum, replacing
from panscope.storage.sealed import read_sealed, write_sealed

SUMMARY = "summary.json"
_ADVICE = "delete it, then compute it again with `panscope geometry`"


@dataclass(frozen=True)
class Analysis:
    """One thing that was found out."""

    kind: str
    """mmcs, matching, splitting, neighbourhood or tokens."""
    about: dict[str, Any]
    """Which coders and latents, by the names that the kind gives them."""
    coders: dict[str, str]
    """Every coder that went into it, with the checksum of its weights."""
    numbers: dict[str, Any]
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """File name -> its columns, equally long lists or tensors."""


class GeometryFolder:
    """`RUN/geometry`, for the process that holds the run."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self._seed = seed

    @property
    def summary(self) -> Path:
        """Where everything is listed."""
        return self.path / SUMMARY

    def read(self) -> list[dict[str, Any]]:
        """The analyses of the summary; none where there is no summary; raises UserError if it was damaged."""
        return read_sealed(self.summary, advice=_ADVICE)["analyses"] if self.summary.exists() else []

    def forget_outdated(self, weights: Mapping[str, str]) -> int:
        """Take out what was made of other weights than the run's coders have now; how many analyses that were.

        `weights` holds the checksum of every coder of this run; those of other runs cannot be known.
        """
        entries = self.read()
        kept = [entry for entry in entries if _is_current(entry["coders"], weights)]
        if len(kept) < len(entries):
            self._write(kept)
            still = {name for entry in kept for name in entry["files"]}
            for name in {name for entry in entries for name in entry["files"]} - still:
                (self.path / name).unlink(missing_ok=True)
        return len(entries) - len(kept)

    def enter(self, analysis: Analysis) -> dict[str, Any]:
        """Write the tables of an analysis and list it; the entry."""
        files = {name: write_table(self.path / name, columns) for name, columns in analysis.tables.items()}
        entry = {"kind": analysis.kind, **analysis.about, "seed": self._seed, "coders": analysis.coders, "files": files}
        entry["numbers"] = analysis.numbers
        others = [old for old in self.read() if not old["files"].keys() & files.keys()]
        self._write([*others, entry])
        return entry

    def _write(self, entries: Sequence[dict[str, Any]]) -> None:
        ordered = sorted(entries, key=lambda entry: (_KINDS.index(entry["kind"]), min(entry["files"])))
        write_sealed(self.summary, {"analyses": ordered})


_KINDS = ("mmcs", "matching", "splitting", "neighbourhood", "tokens")


def _is_current(coders: Mapping[str, str], weights: Mapping[str, str]) -> bool:
    return all("@" in name or weights.get(name) == xxh3 for name, xxh3 in coders.items())


def write_table(path: Path, columns: Mapping[str, Any]) -> str:
    """Write a Parquet file in one piece; its checksum."""
    plain = {name: _plain(column) for name, column in columns.items()}
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(plain), temporary)
    return checksum(path)


def _plain(column: Any) -> Any:
    return column.cpu().numpy() if isinstance(column, Tensor) else column


def file_name(name: str) -> str:
    """A name as part of a file's: what could be a folder or a wild card becomes a dash."""
    return re.sub(r"[^\w.@-]", "-", name)
