"""Run folders: what is where, written so that a reader never sees half a file and a crash loses nothing.

Every write goes to a temporary name in the same folder, is flushed to disk and then renamed. Metrics are appended as
whole JSON lines. Numbers come from these records, never from log text. Whatever is read back carries a checksum, so
that damage is a sentence and never a number; what the system refuses to read or write is a sentence too.
"""

import contextlib
import errno
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import safetensors
import safetensors.torch
import xxhash
from torch import Tensor

from panscope.config import expanded, read_toml, write_toml
from panscope.types import UserError

_SEAL = "seal"
LOCK = ".lock"
"""The file by which a process holds a folder."""
_COPY = "take an undamaged copy"
_TOML_SEAL = "# xxh3 {} of all lines below; to change this file on purpose, delete this line\n"


class WriteError(UserError, OSError):
    """What the system refused to write, and why; `errno` is the system's."""

    def __init__(self, path: Path, error: OSError) -> None:
        self.reason: str = error.reason if isinstance(error, WriteError) else error.strerror or str(error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        then = "make room there" if full else "make it writable, or choose another place"
        super().__init__(f"{str(path)!r} cannot be written: {self.reason}; what was saved before is untouched: {then}")
        self.errno = error.errno


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
        with _reading(path, "choose another --out"):
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
        with _reading(run.suite_file, "make it readable"):
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


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says of a refused write into one sentence that names `path`."""
    try:
        yield
    except OSError as error:
        raise WriteError(path, error) from error
    except safetensors.SafetensorError as error:
        raise WriteError(path, _system_error(error)) from error


def _system_error(error: safetensors.SafetensorError) -> OSError:
    """What the system said, which safetensors tells in words alone."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


@contextlib.contextmanager
def _reading(path: Path, then: str = _COPY) -> Iterator[None]:
    """Turn what the system says of a file that cannot be read into one sentence that ends with what to do `then`."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"the file {str(path)!r} is missing; {then}") from None
    except OSError as error:
        raise UserError(f"the file {str(path)!r} cannot be read: {error.strerror or error}; {then}") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on leaving it is flushed to disk and takes the place of `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _flush_to_disk(temporary)
            os.replace(temporary, path)
            _flush_to_disk(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; on leaving without an exception it is renamed to `path`, which must not exist.

    Where the system refuses a write, the temporary folder is removed, as it may be what fills the disk.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            yield temporary
            _flush_to_disk(temporary)
            os.rename(temporary, path)
            _flush_to_disk(path.parent)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one piece."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one piece; NaN and infinity become null, as JSON has neither."""
    write_text(path, json.dumps(_finite(value), indent=2) + "\n")


def read_json(path: Path, then: str = _COPY) -> Any:
    """The value of a JSON file; raises UserError, with what to do `then`, if it is missing or broken."""
    with _reading(path, then):
        raw = path.read_bytes()
    try:
        return json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"the file {str(path)!r} is damaged and is not JSON: {error}; {then}") from None


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file that carries a checksum of itself, for `read_sealed`."""
    value = _finite(value)
    assert _SEAL not in value
    write_json(path, value | {_SEAL: _seal(value)})


def read_sealed(path: Path, then: str = _COPY) -> dict[str, Any]:
    """What `write_sealed` wrote; raises UserError, with what to do `then`, if it is missing or was changed."""
    return unsealed(path, read_json(path, then), then)


def unsealed(path: Path, value: Any, then: str = _COPY) -> dict[str, Any]:
    """The value of the sealed JSON file `path` without its seal; raises UserError, with what to do `then`."""
    if not isinstance(value, dict) or _SEAL not in value:
        raise UserError(
            f"the file {str(path)!r} carries no checksum of itself: it is damaged, or of an older version; {then}"
        )
    content = {key: item for key, item in value.items() if key != _SEAL}
    if value[_SEAL] != _seal(content):
        raise UserError(f"the file {str(path)!r} is damaged: it does not match its own checksum; {then}")
    return content


def write_sealed_toml(path: Path, tables: dict[str, Any]) -> None:
    """Write a TOML file whose first line, a comment, is a checksum of all the others."""
    text = f"\n{write_toml(tables)}"
    write_text(path, _TOML_SEAL.format(xxhash.xxh3_64_hexdigest(text.encode())) + text)


def read_sealed_toml(path: Path) -> dict[str, Any]:
    """The tables of what `write_sealed_toml` wrote; raises UserError if it was changed and its first line left there.

    A file that begins with no comment is taken as it is: who deletes the first line means to change the rest.
    """
    tables = read_toml(path)
    with _reading(path):
        first, _, rest = path.read_bytes().partition(b"\n")
    if first.startswith(b"#") and first + b"\n" != _TOML_SEAL.format(xxhash.xxh3_64_hexdigest(rest)).encode():
        raise UserError(
            f"the file {str(path)!r} was changed since the run began: it does not match the checksum in its first "
            "line; put it back as it was, or delete that line to go on with the change"
        )
    return tables


def _seal(value: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the folder for this process alone; raises UserError if another one holds it, unless it is to `wait`.

    The system lets go of the lock when its owner ends, however it ends.
    """
    lock = filelock.FileLock(folder / LOCK)
    with writing(folder / LOCK):
        try:
            lock.acquire(blocking=wait)
        except filelock.Timeout:
            raise UserError(
                f"{str(folder)!r} is in use by another process of panscope: wait until that has ended, or stop it"
            ) from None
    try:
        yield
    finally:
        lock.release()


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


def read_tensors(path: Path, xxh3: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; raises UserError if it is missing, broken or not of `xxh3`."""
    if xxh3 is not None and checksum(path) != xxh3:
        raise UserError(f"the file {str(path)!r} is damaged: it does not match its checksum; {_COPY}")
    try:
        with _reading(path):
            return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise UserError(f"the file {str(path)!r} is damaged and is not safetensors: {error}") from None


def checksum(path: Path, size: int | None = None) -> str:
    """xxh3 (64 bit) of a file's bytes, or of the first `size` of them: 16 hex digits."""
    digest, left = xxhash.xxh3_64(), math.inf if size is None else size
    with _reading(path), path.open("rb") as file:
        while block := file.read(int(min(left, 1 << 22))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


class JsonLines:
    """A file of JSON lines; a crash can only cut the last line, and `take_back` takes it back to a checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, records: list[dict[str, Any]]) -> None:
        """Add one line a record, after dropping what a crash left of a last line; all of them, or none."""
        text = "".join(json.dumps(_finite(record)) + "\n" for record in records)
        with writing(self.path):
            whole = self.path.read_bytes().rfind(b"\n") + 1 if self._ends_cut() else self.size()
            self.truncate(whole)
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(text)
            except OSError:
                with contextlib.suppress(OSError):
                    self.truncate(whole)
                raise

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
        with writing(self.path):
            if self.size() > size:
                os.truncate(self.path, size)

    def mark(self) -> dict[str, Any]:
        """How long the file is and the checksum of it all, which is on disk now: what `check` and `take_back` need."""
        if not self.path.is_file():
            return {"log_bytes": 0, "log_xxh3": xxhash.xxh3_64_hexdigest(b"")}
        with writing(self.path):
            _flush_to_disk(self.path)
        size = self.size()
        return {"log_bytes": size, "log_xxh3": checksum(self.path, size)}

    def check(self, mark: dict[str, Any]) -> None:
        """Raise UserError unless the file begins with all that it held at `mark`."""
        if mark["log_bytes"] and checksum(self.path, mark["log_bytes"]) != mark["log_xxh3"]:
            raise UserError(
                f"the file {str(self.path)!r} is damaged or lacks lines: what was written before does not match its "
                "checksum; take an undamaged copy, or delete it to go on without its earlier lines"
            )

    def take_back(self, mark: dict[str, Any]) -> None:
        """Forget what came after `mark`; raises UserError if what came before was changed, but not if all is gone."""
        if os.path.lexists(self.path):
            self.check(mark)
            self.truncate(mark["log_bytes"])

    def read(self) -> list[dict[str, Any]]:
        """Every whole line; raises UserError for a damaged one."""
        if not os.path.lexists(self.path):
            return []
        with _reading(self.path):
            raw = self.path.read_bytes()
        try:
            return [json.loads(line) for line in raw.decode("utf-8").split("\n")[:-1]]
        except (ValueError, RecursionError) as error:
            raise UserError(f"the file {str(self.path)!r} holds a damaged line: {error}") from None
