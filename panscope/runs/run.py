"""A run folder: which file is where (`docs/architecture.md` shows the picture), its status and its training log."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

from panscope.config import expanded
from panscope.storage.atomic import reading
from panscope.storage.json_lines import JsonLines
from panscope.storage.locks import LOCK
from panscope.storage.sealed import read_sealed, write_sealed
from panscope.types import UserError


class RunFolder:
    """The places inside one run's folder (`docs/architecture.md` shows the picture)."""

    def __init__(self, path: Path | str) -> None:
        self.path = expanded(path)
        self.suite_file = self.path / "suite.toml"
        self.status_file = self.path / "status.json"
        self.train_log = self.path / "train.jsonl"
        self.coders = self.path / "coders"
        self.checkpoints = self.path / "checkpoint"

    @staticmethod
    def check_free(path: Path | str) -> None:
        """Raise UserError if something is already at `path`."""
        path = expanded(path)
        with reading(path, "choose another --out"):
            is_taken = path.exists() and (not path.is_dir() or _holds_something(path))
        if is_taken:
            is_run = (path / "suite.toml").is_file()
            instead = f", or go on with it by `panscope train --resume {path}`" if is_run else ""
            raise UserError(f"the run folder {str(path)!r} already exists: choose another --out{instead}")

    @classmethod
    def create(cls, path: Path | str) -> "RunFolder":
        """A new run folder; raises UserError if something is already there or it cannot be made."""
        cls.check_free(path)
        run = cls(path)
        try:
            run.coders.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the run folder {str(run.path)!r} cannot be made ({error}): choose another --out"
            ) from None
        return run

    @classmethod
    def open(cls, path: Path | str) -> "RunFolder":
        """An existing run folder; raises UserError if there is none."""
        run = cls(path)
        with reading(run.suite_file, "make it readable"):
            is_run = run.suite_file.is_file()
        if not is_run:
            raise UserError(f"{str(run.path)!r} is not a run folder: it has no suite.toml; give the folder of a run")
        return run

    def coder(self, name: str) -> Path:
        """The folder of one coder."""
        return self.coders / name

    def coder_names(self) -> list[str]:
        """The finished coders, sorted; raises UserError for one that lost its config.json, or never had it."""
        folders = [folder for folder in self.coders.glob("[!.]*") if folder.is_dir()] if self.coders.is_dir() else []
        for folder in folders:
            if any(folder.glob("[!.]*")) and not (folder / "config.json").is_file():
                raise UserError(
                    f"the coder {str(folder)!r} has no config.json: take an undamaged copy, or delete status.json and "
                    f"write it again by `panscope train --resume {self.path}`"
                )
        return sorted(folder.name for folder in folders if (folder / "config.json").is_file())

    def write_status(self, stage: str, **facts: Any) -> None:
        """Say in status.json what the run is doing, since when, in which process, and how far train.jsonl is good."""
        now = {"stage": stage, "since": time.strftime("%FT%T%z"), "process": os.getpid()}
        write_sealed(self.status_file, now | facts | JsonLines(self.train_log).mark())

    def status(self) -> dict[str, Any]:
        """What `write_status` wrote, or {} if there is none; raises UserError if it was damaged."""
        if not os.path.lexists(self.status_file):
            return {}
        then = f"delete it, and `panscope train --resume {self.path}` finds out how far the run is"
        status = read_sealed(self.status_file, then=then)
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
        """Remove what a killed process, ours or safetensors within it, had begun to write; for who holds the folder.

        What is in `evaluation/` is left: other processes may be at it, each with its part.
        """
        for pattern in (".*.tmp", ".tmp??????"):
            for left in list(self.path.rglob(pattern)):
                if left.is_relative_to(self.path / "evaluation"):
                    continue
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)


def _holds_something(folder: Path) -> bool:
    """Whether a folder has more in it than a run that ended before its first file was written."""
    inside = [entry for entry in folder.iterdir() if entry.name != LOCK and not entry.match(".*.tmp")]
    return inside != [] and not (inside == [folder / "coders"] and inside[0].is_dir() and not any(inside[0].iterdir()))
