"""The sums of an evaluation on disk, so that one that was killed goes on, and several processes add up to one.

`evaluation/<label>/part-1-of-2/` holds the sums of one process in a file named after how far it is, and `stand.json`,
sealed, which says which file that is, its checksum, how far, and of what question it is. `evaluation/<label>/means/`
holds the sites' means, which whoever has them first leaves for all. What was asked is part of every file: sums of
another question, other coders, another text or another model are never gone on with.
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from panscope.evals.evaluate import TextProgress
from panscope.evals.spec import EvalShard
from panscope.storage.atomic import checksum
from panscope.storage.locks import LOCK
from panscope.storage.sealed import read_sealed, write_sealed
from panscope.storage.tensors import read_tensors, write_tensors
from panscope.types import UserError

State = dict[str, Tensor]


class EvalCheckpoint:
    """The sums of one process, or the means all share."""

    def __init__(self, folder: Path, key: str) -> None:
        """`key` is a hash of all that the sums depend on."""
        self._folder, self._key = folder, key
        self._stand_file = folder / "stand.json"

    @classmethod
    def for_shard(cls, folder: Path, key: str, share: EvalShard) -> "EvalCheckpoint":
        """Those of one of several processes that answer one question."""
        return cls(folder / f"part-{share.number + 1}-of-{share.of}", key)

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self._folder

    def is_complete(self) -> bool:
        """Whether all was measured and saved; the sums are not read, which another process may be replacing."""
        found = self._stand()
        return found is not None and found["complete"]

    def load(self) -> tuple[State, TextProgress, bool] | None:
        """What was saved, how far it had got, and whether that was all; None if nothing was, or of another question.

        Raises UserError if a file is damaged.
        """
        found, then = self._stand(), self._then
        if found is None:
            return None
        path = self._folder / found["file"]
        if not path.exists() or checksum(path) != found["xxh3"]:
            raise UserError(f"the file {str(path)!r} is missing or damaged: it does not match its checksum; {then}")
        return read_tensors(path), TextProgress(**found["stand"]), found["complete"]

    @property
    def _then(self) -> str:
        return f"delete the folder {str(self._folder)!r} to measure again"

    def _stand(self) -> dict[str, Any] | None:
        """What stand.json says; None if there is none, or it is of another question."""
        if not self._stand_file.exists():
            return None
        found = read_sealed(self._stand_file, then=self._then)
        return found if found["key"] == self._key else None

    def save(self, state: State, stand: TextProgress, *, complete: bool) -> None:
        """Save sums that hold the text up to `stand`; what was saved before stays until the new is whole."""
        path = self._folder / f"sums-{stand.batches:08d}.safetensors"
        write_tensors(path, state)
        about = {"key": self._key, "file": path.name, "xxh3": checksum(path), "stand": asdict(stand)}
        write_sealed(self._stand_file, about | {"complete": complete})
        for old in self._folder.glob("*.safetensors"):
            if old != path:
                old.unlink(missing_ok=True)


def delete_checkpoints(folder: Path) -> None:
    """Delete all sums of one evaluation, and what holds it if that was the last."""
    shutil.rmtree(folder, ignore_errors=True)
    if all(left.name == LOCK for left in folder.parent.glob("*")):
        shutil.rmtree(folder.parent, ignore_errors=True)
