"""The results of geometry analyses in a run folder: Parquet tables, and one summary with their checksums.

An analysis is recorded as soon as its tables are written, so an interruption loses only the current one. An analysis
that is recorded again replaces the earlier one; analyses of weights that have changed since are removed.
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
    """The results of one analysis."""

    kind: str
    """mmcs, matching, splitting, neighbourhood or tokens."""
    about: dict[str, Any]
    """The coders and latents analysed, by keys that depend on the kind."""
    coders: dict[str, str]
    """The coders involved, with the checksums of their weights."""
    numbers: dict[str, Any]
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """File names, each with its columns: lists or tensors of equal length."""


class GeometryFolder:
    """The folder `RUN/geometry`, for the process that has locked the run."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self._seed = seed

    @property
    def summary(self) -> Path:
        """The path of the summary."""
        return self.path / SUMMARY

    def read(self) -> list[dict[str, Any]]:
        """The analyses in the summary, none if it does not exist; raises UserError if it is damaged."""
        return read_sealed(self.summary, advice=_ADVICE)["analyses"] if self.summary.exists() else []

    def remove_outdated(self, weights: Mapping[str, str]) -> int:
        """Remove analyses of weights that have changed since; returns the number of analyses removed.

        `weights` are the current checksums of this run's coders; coders of other runs are not checked.
        """
        entries = self.read()
        kept = [entry for entry in entries if _is_current(entry["coders"], weights)]
        if len(kept) < len(entries):
            self._write(kept)
            kept_files = {name for entry in kept for name in entry["files"]}
            for name in {name for entry in entries for name in entry["files"]} - kept_files:
                (self.path / name).unlink(missing_ok=True)
        return len(entries) - len(kept)

    def record(self, analysis: Analysis) -> dict[str, Any]:
        """Write the tables of an analysis and add it to the summary; returns its entry."""
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
    """Write a Parquet file atomically; returns its checksum."""
    arrays = {name: _as_array(column) for name, column in columns.items()}
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(arrays), temporary)
    return checksum(path)


def _as_array(column: Any) -> Any:
    return column.cpu().numpy() if isinstance(column, Tensor) else column


def file_name(name: str) -> str:
    """A name as part of a file name: path separators, wildcards and other special characters become dashes."""
    return re.sub(r"[^\w.@-]", "-", name)
