"""Access to the files of a store: the interface, and its implementation for a local folder (see also `remote.py`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from panscope.activations.store.shard import reading
from panscope.types import UserError


class Files(Protocol):
    """Files by their names relative to the store, such as `sites/L03.resid_post/00000.safetensors`."""

    @property
    def where(self) -> str:
        """The folder or address, for error messages."""
        ...

    @property
    def is_persistent(self) -> bool:
        """Whether local paths stay valid; if not, memory maps of files no longer needed must be released."""
        ...

    def path(self, name: str) -> Path:
        """The local path of a file, which is fetched first if necessary; raises UserError if there is no such file."""
        ...

    def fetch_ahead(self, names: Sequence[str]) -> None:
        """Start fetching files that will be read soon."""
        ...


class LocalFiles:
    """The files of a store in a local folder."""

    is_persistent = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.where = str(folder)

    def path(self, name: str) -> Path:
        """The path of a file in the folder; raises UserError if there is none."""
        path = self._folder / name
        with reading(path):
            exists = path.is_file()
        if not exists:
            raise UserError(
                f"the file {str(path)!r} is missing: take a complete copy of the store, or collect it again"
            )
        return path

    def fetch_ahead(self, names: Sequence[str]) -> None:
        """Do nothing: the files are local."""
