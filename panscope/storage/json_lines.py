"""Logs of JSON lines: appended to, checked against a recorded length and checksum, and cut back to one."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import xxhash

from panscope.storage import atomic
from panscope.storage.atomic import checksum, reading, writing
from panscope.storage.sealed import finite
from panscope.types import UserError


class JsonLines:
    """A file of JSON lines; a crash can only cut the last line, and `take_back` takes it back to a checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, records: list[dict[str, Any]]) -> None:
        """Add one line a record, after dropping what a crash left of a last line; all of them, or none."""
        text = "".join(json.dumps(finite(record)) + "\n" for record in records)
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
            atomic.flush_to_disk(self.path)
        size = self.size()
        return {"log_bytes": size, "log_xxh3": checksum(self.path, size)}

    def check(self, mark: dict[str, Any]) -> None:
        """Raise UserError unless the file begins with all that it held at `mark`."""
        if mark["log_bytes"] and checksum(self.path, mark["log_bytes"]) != mark["log_xxh3"]:
            raise UserError(
                f"the file {str(self.path)!r} is damaged or lacks lines: what was written before does not match its "
                "checksum; take an undamaged copy, or delete it to continue without its earlier lines"
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
        with reading(self.path):
            raw = self.path.read_bytes()
        try:
            return [json.loads(line) for line in raw.decode("utf-8").split("\n")[:-1]]
        except (ValueError, RecursionError) as error:
            raise UserError(f"the file {str(self.path)!r} holds a damaged line: {error}") from None
