"""Where the files of a store are: a folder on this machine; `remote.py` has the other place, an object store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from panscope.activations.store.shard import reading
from panscope.types import UserError


class Files(Protocol):
    """Files by their names inside the store, such as `sites/L03.resid_post/00000.safetensors`."""

    @property
    def where(self) -> str:
        """The folder or address, for messages."""
        ...

    @property
    def stays(self) -> bool:
        """Whether files stay where they are; if not, a map of one that is not needed any more must be let go of."""
        ...

    def path(self, name: str) -> Path:
        """Where a file lies on this machine, fetched first if it must be; raises UserError if there is none."""
        ...

    def fetch_ahead(self, names: Sequence[str]) -> None:
        """These files are read soon."""
        ...


class LocalFiles:
    """A folder."""

    stays = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.where = str(folder)

    def path(self, name: str) -> Path:
        """Inside the folder."""
        path = self._folder / name
        with reading(path):
            found = path.is_file()
        if not found:
            raise UserError(f"the file {str(path)!r} is missing: take a whole copy of the store, or collect it again")
        return path

    def fetch_ahead(self, names: Sequence[str]) -> None:
        """They are here already."""
