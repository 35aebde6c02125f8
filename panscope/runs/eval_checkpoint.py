"""The sums of an evaluation on disk, so that one that was killed is continued, and several processes add up to one.

`evaluation/<label>/part-1-of-2/` holds the sums of one process in a file named after its progress, and `progress.json`,
sealed, which has that file's name and checksum, the progress, and the key of the evaluation.
`evaluation/<label>/means/` has the sites' means, which the first process to have them leaves for the others. The key is
a hash of all that the sums depend on: those of other coders, another text, model or definition are never continued.
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
        self._progress_file = folder / "progress.json"

    @classmethod
    def for_shard(cls, folder: Path, key: str, share: EvalShard) -> "EvalCheckpoint":
        """Those of one of several processes of one evaluation."""
        return cls(folder / f"part-{share.number + 1}-of-{share.of}", key)

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self._folder

    def is_complete(self) -> bool:
        """Whether all was measured and saved; the sums are not read, which another process may be replacing."""
        found = self._progress()
        return found is not None and found["complete"]

    def load(self) -> tuple[State, TextProgress, bool] | None:
        """The sums, the progress, and whether it is complete; None if nothing was saved, or of another evaluation.

        Raises UserError if a file is damaged.
        """
        found, then = self._progress(), self._then
        if found is None:
            return None
        path = self._folder / found["file"]
        if not path.exists() or checksum(path) != found["xxh3"]:
            raise UserError(f"the file {str(path)!r} is missing or damaged: it does not match its checksum; {then}")
        return read_tensors(path), TextProgress(**found["progress"]), found["complete"]

    @property
    def _then(self) -> str:
        return f"delete the folder {str(self._folder)!r} to measure again"

    def _progress(self) -> dict[str, Any] | None:
        """What progress.json says; None if there is none, or it is of another evaluation."""
        if not self._progress_file.exists():
            return None
        found = read_sealed(self._progress_file, advice=self._then)
        return found if found["key"] == self._key else None

    def save(self, state: State, progress: TextProgress, *, complete: bool) -> None:
        """Save the sums of the text up to `progress`; what was saved before is kept until the new file is whole."""
        path = self._folder / f"sums-{progress.batches:08d}.safetensors"
        write_tensors(path, state)
        about = {"key": self._key, "file": path.name, "xxh3": checksum(path), "progress": asdict(progress)}
        write_sealed(self._progress_file, about | {"complete": complete})
        for old in self._folder.glob("*.safetensors"):
            if old != path:
                old.unlink(missing_ok=True)


def delete_checkpoints(folder: Path) -> None:
    """Delete all sums of one evaluation, and what holds it if that was the last."""
    shutil.rmtree(folder, ignore_errors=True)
    if all(left.name == LOCK for left in folder.parent.glob("*")):
        shutil.rmtree(folder.parent, ignore_errors=True)
