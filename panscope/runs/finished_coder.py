"""A finished coder in a run folder, and the evaluations of it: each file is read once, and again only once it changed.

An evaluation has a label, which is in the names of its files: `eval.json`, `latents.parquet`, `positions.parquet` for
the run's held-out text, `eval-<label>.json` and so on for any other. Every JSON file must match its own checksum and
every table the checksum in its eval.json, so that no damaged number is used.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from panscope.coders import files
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.runs.identity import RunIdentity
from panscope.storage.atomic import checksum
from panscope.storage.file_version import ReadOnce
from panscope.storage.sealed import read_sealed, read_sealed_toml
from panscope.types import UserError

HELD_OUT = "held_out"
"""The label of the evaluation on the share of the text that was kept from training."""


def suffix_of(label: str) -> str:
    """What the names of an evaluation's files end with."""
    return "" if label == HELD_OUT else f"-{label}"


def label_of(path: Path, kind: str) -> str:
    """The label in the name of a file `<kind>.json`, `<kind>-<label>.parquet` ..."""
    return path.stem.removeprefix(kind).removeprefix("-") or HELD_OUT


def in_order(labels: set[str]) -> list[str]:
    """Labels sorted, the held-out text first."""
    return sorted(labels, key=lambda label: (label != HELD_OUT, label))


@dataclass(frozen=True)
class StoredEvaluation:
    """One eval.json and the tables beside it."""

    folder: Path
    """The coder's."""
    label: str
    content: dict[str, Any]
    """Every field of eval.json."""

    @property
    def about(self) -> dict[str, Any]:
        """What it was measured on."""
        return self.content.get("evaluated_on", {})

    @property
    def definition(self) -> dict[str, Any]:
        """What two evaluations must have in common to be in one table.

        Text and model count by what they are and not by where, which differs between machines, and sequences in a pass
        change nothing but rounding.
        """
        apart = ("text", "model", "sequences") if {"text_identity", "model_identity"} <= self.about.keys() else ()
        return {field: value for field, value in self.about.items() if field not in apart}

    def table(self, name: str) -> list[dict[str, Any]] | None:
        """The rows of `positions`, `latents` or `layers`; None where this evaluation wrote none.

        Raises UserError for a damaged file.
        """
        file = f"{name}{suffix_of(self.label)}.parquet"
        xxh3 = self.content.get("files", {}).get(file)
        again = f"measure again by `panscope eval {self.folder.parents[1]}` and the flags it was made with"
        return None if xxh3 is None else read_table(self.folder / file, xxh3, again)


class FinishedCoder:
    """The folder of one coder of a run: configuration, weights, evaluations."""

    def __init__(self, folder: Path, cache: ReadOnce | None = None) -> None:
        self.folder = folder
        self._cache = cache or ReadOnce()

    @property
    def name(self) -> str:
        """That of its folder."""
        return self.folder.name

    @property
    def config(self) -> dict[str, Any]:
        """config.json; raises UserError if it is missing or damaged."""
        return self._cache.get(self.folder / files.CONFIG, lambda path: files.read_config(path.parent))

    @property
    def wiring(self) -> Wiring:
        """The sites it reads and predicts."""
        return Wiring.read(self.config["wiring"], str(self.folder / files.CONFIG))

    @property
    def identity(self) -> RunIdentity | None:
        """The model and text that it was trained on; None for an imported coder."""
        found = self.config.get("identity")
        return None if found is None else RunIdentity.read(found, str(self.folder / files.CONFIG))

    @property
    def weights(self) -> dict[str, str]:
        """The checksum of each file of weights."""
        return self.config["xxh3"]

    @property
    def run_tables(self) -> dict[str, Any]:
        """The tables of suite.toml of the run it is in; {} for a folder that is in none."""
        suite = self.folder.resolve().parent.parent / "suite.toml"
        return self._cache.get(suite, read_suite) if suite.is_file() else {}

    def load(self) -> WiredCoder:
        """The coder for raw activations; raises UserError if a file is missing, damaged or of another shape."""
        return files.load(self.folder, self.config)

    def load_trained(self) -> WiredCoder:
        """The coder as it was trained, with its normaliser; raises as `load`."""
        return files.load_trained(self.folder, self.config)

    def labels(self) -> list[str]:
        """The evaluations there are of it; the held-out text first."""
        return in_order({label_of(path, "eval") for path in self.folder.glob("eval*.json")})

    def check_files(self) -> None:
        """Raise UserError for a file of weights, or a table of an evaluation, that is missing or damaged."""
        evaluations = [found.content.get("files", {}) for label in self.labels() if (found := self.evaluation(label))]
        for name, xxh3 in [item for sums in (self.weights, *evaluations) for item in sums.items()]:
            if checksum(self.folder / name) != xxh3:
                raise UserError(
                    f"the file {str(self.folder / name)!r} is damaged: it does not match its checksum; take an "
                    "undamaged copy"
                )

    def evaluation(self, label: str) -> StoredEvaluation | None:
        """An evaluation, or None where there is none of this label.

        Raises UserError for a file that is damaged, of another coder, or of other weights than the coder has now.
        """
        path = self.folder / f"eval{suffix_of(label)}.json"
        if not path.is_file():
            return None
        again = f"measure again by `panscope eval {self.folder.parents[1]}`"
        content = self._cache.get(path, lambda path: read_sealed(path, advice=again))
        if content.get("coder") != self.name:
            raise UserError(f"the file {str(path)!r} is not of this coder; {again}")
        if content.get("weights", self.weights) != self.weights:
            raise UserError(
                f"the file {str(path)!r} is of other weights than the coder has now; {again} and the flags it was "
                "made with, or delete the file"
            )
        return StoredEvaluation(self.folder, label, content)


def read_suite(path: Path) -> dict[str, Any]:
    """The tables of a suite.toml; raises UserError for one that is damaged, or was emptied.

    That of an imported run has an empty list of coders.
    """
    tables = read_sealed_toml(path)
    if not isinstance(tables.get("coders"), list):
        raise UserError(
            f"the file {str(path)!r} has no [[coders]] tables: it was emptied or cut off; put it back as it was"
        )
    return tables


def read_table(path: Path, xxh3: str, then: str) -> list[dict[str, Any]]:
    """The rows of a Parquet file that must have this checksum; raises UserError, with what to do `then`."""
    if checksum(path) != xxh3:
        raise UserError(f"the file {str(path)!r} is damaged: it does not match its checksum; {then}")
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"the file {str(path)!r} cannot be read: {error}; {then}") from None
