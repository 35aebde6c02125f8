"""Run folders: what is where, written so that a reader never sees half a file and a crash loses nothing.

Every write goes to a temporary name in the same folder, is flushed to disk and then renamed. Metrics are appended as
whole JSON lines. Numbers come from these records, never from log text.
"""

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import xxhash
from torch import Tensor

from panscope.types import UserError


class RunFolder:
    """The places inside one run's folder (`docs/architecture.md` shows the picture)."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser()
        self.suite_file = self.path / "suite.toml"
        self.status_file = self.path / "status.json"
        self.train_log = self.path / "train.jsonl"
        self.coders = self.path / "coders"
        self.checkpoints = self.path / "checkpoint"

    @staticmethod
    def check_free(path: Path | str) -> None:
        """Raise UserError if something is already at `path`."""
        path = Path(path).expanduser()
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
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
        if not run.suite_file.is_file():
            raise UserError(f"{str(run.path)!r} is not a run folder: it has no suite.toml; give the folder of a run")
        return run

    def coder(self, name: str) -> Path:
        """The folder of one coder."""
        return self.coders / name

    def coder_names(self) -> list[str]:
        """The finished coders, sorted."""
        folders = self.coders.glob("[!.]*") if self.coders.is_dir() else []
        return sorted(folder.name for folder in folders if (folder / "config.json").is_file())

    def write_status(self, stage: str, **facts: Any) -> None:
        """Say in status.json what the run is doing, since when, in which process."""
        write_json(
            self.status_file, {"stage": stage, "since": time.strftime("%FT%T%z"), "process": os.getpid()} | facts
        )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on leaving it is flushed to disk and takes the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, path)
        _flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; on leaving without an exception it is renamed to `path`, which must not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    yield temporary
    _flush_to_disk(temporary)
    os.rename(temporary, path)
    _flush_to_disk(path.parent)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one piece."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one piece; NaN and infinity become null, as JSON has neither."""
    write_text(path, json.dumps(_finite(value), indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file; raises UserError if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"the file {str(path)!r} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"the file {str(path)!r} is damaged and is not JSON: {error}") from None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file in one piece."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        safetensors.torch.save_file(contiguous, temporary, metadata)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; raises UserError if it is missing or broken."""
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise UserError(f"the file {str(path)!r} is missing") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"the file {str(path)!r} is damaged and is not safetensors: {error}") from None


def checksum(path: Path) -> str:
    """xxh3 (64 bit) of a file's bytes, 16 hex digits."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


class JsonLines:
    """A file of JSON lines; a crash can only cut the last line, and `truncate` takes it back to a checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, records: list[dict[str, Any]]) -> None:
        """Add one line a record, after dropping what a crash left of a last line."""
        text = "".join(json.dumps(_finite(record)) + "\n" for record in records)
        whole = self.path.read_bytes().rfind(b"\n") + 1 if self._ends_cut() else self.size()
        self.truncate(whole)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)

    def _ends_cut(self) -> bool:
        """Whether the last line lacks its end."""
        if not self.size():
            return False
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"

    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def truncate(self, size: int) -> None:
        """Forget what came after the first `size` bytes."""
        if self.size() > size:
            os.truncate(self.path, size)

    def read(self) -> list[dict[str, Any]]:
        """Every whole line; raises UserError for a damaged one."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        try:
            return [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            raise UserError(f"the file {str(self.path)!r} holds a damaged line: {error}") from None
