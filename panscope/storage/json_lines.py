"""Append-only logs of JSON lines that can be verified against, and truncated to, a recorded length and checksum."""

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
    """A file of JSON lines. A crash can only truncate the last line; `roll_back` restores the state of a checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, records: list[dict[str, Any]]) -> None:
        """Append one line per record, all or none, after dropping a partial last line left by a crash."""
        text = "".join(json.dumps(finite(record)) + "\n" for record in records)
        with writing(self.path):
            complete = self.path.read_bytes().rfind(b"\n") + 1 if self._has_partial_line() else self.size()
            self.truncate(complete)
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(text)
            except OSError:
                with contextlib.suppress(OSError):
                    self.truncate(complete)
                raise

    def _has_partial_line(self) -> bool:
        """Whether the last line is incomplete."""
        if not self.size():
            return False
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"

    def size(self) -> int:
        """The size of the file in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def truncate(self, size: int) -> None:
        """Remove everything after the first `size` bytes."""
        with writing(self.path):
            if self.size() > size:
                os.truncate(self.path, size)

    def mark(self) -> dict[str, Any]:
        """Flush the file to disk and return its length and checksum, for `check` and `roll_back`."""
        if not self.path.is_file():
            return {"log_bytes": 0, "log_xxh3": xxhash.xxh3_64_hexdigest(b"")}
        with writing(self.path):
            atomic.flush_to_disk(self.path)
        size = self.size()
        return {"log_bytes": size, "log_xxh3": checksum(self.path, size)}

    def check(self, mark: dict[str, Any]) -> None:
        """Raise UserError unless the file begins with the content that it had at `mark`."""
        if mark["log_bytes"] and checksum(self.path, mark["log_bytes"]) != mark["log_xxh3"]:
            raise UserError(
                f"the file {str(self.path)!r} is damaged or lacks lines: its earlier lines do not match their "
                "checksum; take an undamaged copy, or delete it to continue without its earlier lines"
            )

    def roll_back(self, mark: dict[str, Any]) -> None:
        """Remove everything after `mark`; raises UserError if earlier lines changed, but not if the file is gone."""
        if os.path.lexists(self.path):
            self.check(mark)
            self.truncate(mark["log_bytes"])

    def read(self) -> list[dict[str, Any]]:
        """The records of all complete lines; raises UserError for a damaged line."""
        if not os.path.lexists(self.path):
            return []
        with reading(self.path):
            raw = self.path.read_bytes()
        try:
            return [json.loads(line) for line in raw.decode("utf-8").split("\n")[:-1]]
        except (ValueError, RecursionError) as error:
            raise UserError(f"the file {str(self.path)!r} contains a damaged line: {error}") from None
