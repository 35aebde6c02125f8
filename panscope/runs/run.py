"""A run: the one place that knows its folder's files (`docs/architecture.md` shows them), its coders and evaluations.

Everything is read when it is asked for, once, and again only where the file has changed since.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from panscope.config import expanded
from panscope.planning.plan import SuiteConfig
from panscope.runs.finished_coder import (
    HELD_OUT,
    FinishedCoder,
    StoredEvaluation,
    in_order,
    label_of,
    read_suite,
    suffix_of,
)
from panscope.storage.atomic import reading
from panscope.storage.file_version import ReadOnce
from panscope.storage.json_lines import JsonLines
from panscope.storage.locks import LOCK
from panscope.storage.sealed import read_sealed, write_sealed
from panscope.types import UserError


class Run:
    """A run folder: its plan, status, training log, finished coders and their evaluations."""

    def __init__(self, path: Path | str) -> None:
        self.path = expanded(path)
        self.suite_file = self.path / "suite.toml"
        self.status_file = self.path / "status.json"
        self.train_log = self.path / "train.jsonl"
        self.coders_folder = self.path / "coders"
        self.checkpoints = self.path / "checkpoint"
        self.evaluations = self.path / "evaluation"
        self.geometry_folder = self.path / "geometry"
        self._cache = ReadOnce()

    @staticmethod
    def check_free(path: Path | str) -> None:
        """Raise UserError if something is already at `path`."""
        path = expanded(path)
        with reading(path, "choose another --out"):
            is_taken = path.exists() and (not path.is_dir() or _holds_something(path))
        if is_taken:
            is_run = (path / "suite.toml").is_file()
            instead = f", or continue it by `panscope train --resume {path}`" if is_run else ""
            raise UserError(f"the run folder {str(path)!r} already exists: choose another --out{instead}")

    @classmethod
    def create(cls, path: Path | str) -> "Run":
        """A new run folder; raises UserError if something is already there or it cannot be made."""
        cls.check_free(path)
        run = cls(path)
        try:
            run.coders_folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the run folder {str(run.path)!r} cannot be made ({error}): choose another --out"
            ) from None
        return run

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """An existing run folder; raises UserError if there is none."""
        run = cls(path)
        with reading(run.suite_file, "make it readable"):
            is_run = run.suite_file.is_file()
        if not is_run:
            raise UserError(f"{str(run.path)!r} is not a run folder: it has no suite.toml; give the folder of a run")
        return run

    @property
    def tables(self) -> dict[str, Any]:
        """The tables of suite.toml; raises UserError if it was changed with its first line left there."""
        return self._cache.get(self.suite_file, read_suite)

    @property
    def suite(self) -> SuiteConfig:
        """What the run is of, with every default written out; raises UserError as `tables`, or for a wrong value."""
        return SuiteConfig.read(self.tables, str(self.suite_file))

    @property
    def is_imported(self) -> bool:
        """Whether its coders are other tools': then it has no text of its own and was trained on none."""
        return self.tables.get("coders") == []

    def coder_folder(self, name: str) -> Path:
        """Where the files of one coder are."""
        return self.coders_folder / name

    def coder_names(self) -> list[str]:
        """The finished coders, sorted; raises UserError for one that lost its config.json, or never had it."""
        inside = self.coders_folder.glob("[!.]*") if self.coders_folder.is_dir() else ()
        folders = [folder for folder in inside if folder.is_dir()]
        for folder in folders:
            if any(folder.glob("[!.]*")) and not (folder / "config.json").is_file():
                raise UserError(
                    f"the coder {str(folder)!r} has no config.json: take an undamaged copy, or delete status.json and "
                    f"write it again by `panscope train --resume {self.path}`"
                )
        return sorted(folder.name for folder in folders if (folder / "config.json").is_file())

    def coder(self, name: str) -> FinishedCoder:
        """One finished coder; raises UserError, with the names there are, if there is none of this name."""
        folder = self.coder_folder(name)
        if folder.parent != self.coders_folder or not (folder / "config.json").is_file():
            self._check_has("coder", name, self.coder_names())
        return FinishedCoder(folder, self._cache)

    def coders(self) -> list[FinishedCoder]:
        """Every finished coder, by name; raises UserError where there is none yet."""
        names = self.coder_names()
        if not names:
            raise UserError(
                f"the run {str(self.path)!r} has no finished coder yet: continue it by `panscope train --resume "
                f"{self.path}`"
            )
        return [FinishedCoder(self.coder_folder(name), self._cache) for name in names]

    def labels(self) -> list[str]:
        """Every label under which some coder was evaluated; the held-out text first."""
        return in_order({label_of(path, "eval") for path in self.coders_folder.glob("*/eval*.json")})

    def default_label(self) -> str | None:
        """The evaluation that is meant where none is named: on held-out text, else the only one; None if unclear."""
        found = self.labels()
        return HELD_OUT if HELD_OUT in found else found[0] if len(found) == 1 else None

    def chosen_label(self, asked: str | None) -> str | None:
        """The label `asked`, or the default; None for a run that was never evaluated.

        Raises UserError, with the labels that there are, where `asked` is none of them or one has to be named.
        """
        found = self.labels()
        have = ", ".join(found) or "none yet"
        if asked is not None and asked not in found:
            raise UserError(f"eval is {asked!r}, but the run {str(self.path)!r} has no such evaluation: it has {have}")
        label = asked or self.default_label()
        if found and label is None:
            raise UserError(
                f"the run {str(self.path)!r} has several evaluations and none on held-out text: name one of {have} by "
                "--eval"
            )
        return label

    def evaluation(self, label: str | None) -> dict[str, StoredEvaluation | None]:
        """Every coder's evaluation of this label, by name; None for a coder without one.

        Raises UserError where they are not of one measurement and so cannot be compared, and for damaged files.
        """
        found = {one.name: None if label is None else one.evaluation(label) for one in self.coders()}
        measured = {name: own for name, own in found.items() if own is not None}
        first = next(iter(measured), "")
        for name, own in measured.items():
            if own.definition != measured[first].definition:
                raise UserError(
                    f"the evaluations {label!r} of {first!r} and {name!r} are not of one text, model and definition, "
                    f"so no table can hold both: measure all coders again by `panscope eval {self.path}` and the flags "
                    "it was made with, or delete the older file"
                )
        return found

    def results(self, label: str = HELD_OUT) -> pyarrow.Table:
        """The table of an evaluation, a row a coder; raises UserError where there is none, or it cannot be read."""
        labels = in_order({label_of(path, "results") for path in self.path.glob("results*.parquet")})
        self._check_has("evaluation", label, labels)
        path = self.path / f"results{suffix_of(label)}.parquet"
        try:
            return pyarrow.parquet.read_table(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{str(path)!r} cannot be read: measure again by `panscope eval {self.path}`") from error

    def geometry(self) -> dict[str, Any] | None:
        """What `panscope geometry` wrote, or None; raises UserError if it is damaged."""
        path = self.geometry_folder / "summary.json"
        again = f"make it again by `panscope geometry {self.path}`"
        return self._cache.get(path, lambda path: read_sealed(path, advice=again)) if path.exists() else None

    def _check_has(self, what: str, name: str, names: list[str]) -> None:
        if name not in names:
            have = ", ".join(names) or "none yet"
            raise UserError(f"the run {str(self.path)!r} has no {what} {name!r}: it has {have}")

    def write_status(self, stage: str, **facts: Any) -> None:
        """Say in status.json what the run is doing, since when, in which process, and how far train.jsonl is good."""
        now = {"stage": stage, "since": time.strftime("%FT%T%z"), "process": os.getpid()}
        write_sealed(self.status_file, now | facts | JsonLines(self.train_log).mark())

    def status(self) -> dict[str, Any]:
        """What `write_status` wrote, or {} if there is none; raises UserError if it was damaged."""
        if not os.path.lexists(self.status_file):
            return {}
        then = f"delete it, and `panscope train --resume {self.path}` finds out how far the run is"
        status = read_sealed(self.status_file, advice=then)
        if "stage" not in status:
            raise UserError(f"the file {str(self.status_file)!r} is not the status of a run: {then}")
        return status

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of train.jsonl; raises UserError if they were changed since status.json was written."""
        log, status = JsonLines(self.train_log), self.status()
        if status:
            log.check(status)
        return log.read()

    def sweep(self) -> None:
        """Remove what a killed process, ours or safetensors within it, had begun to write; the caller holds the lock.

        What is in `evaluation/` is left: other processes may be at it, each with its part.
        """
        for pattern in (".*.tmp", ".tmp??????"):
            for left in list(self.path.rglob(pattern)):
                if left.is_relative_to(self.evaluations):
                    continue
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)


def _holds_something(folder: Path) -> bool:
    """Whether a folder has more in it than a run that ended before its first file was written."""
    inside = [entry for entry in folder.iterdir() if entry.name != LOCK and not entry.match(".*.tmp")]
    return inside != [] and not (inside == [folder / "coders"] and inside[0].is_dir() and not any(inside[0].iterdir()))
