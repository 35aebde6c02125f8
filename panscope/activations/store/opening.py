"""Where a store is told by how it is written: a folder on this machine, or an address in an object store."""

import os
from pathlib import Path

from panscope.activations.store.files import Files, LocalFiles
from panscope.activations.store.remote import SCHEMES, RemoteFiles
from panscope.activations.store.store import Store
from panscope.config import expanded
from panscope.types import UserError


def open_store(place: str, *, cache: Path | None, cache_bytes: int) -> Store:
    """The store at `place`; of a remote one at most `cache_bytes` bytes are kept in the folder `cache`.

    Raises UserError if there is no store there, or it cannot be read.
    """
    if not is_remote(place):
        return Store.open(expanded(place))
    return Store(open_files(place, cache=cache, cache_bytes=cache_bytes))


def open_files(place: str, *, cache: Path | None, cache_bytes: int) -> Files:
    """The files at `place`, whatever they are; raises UserError if there is no such place."""
    if not is_remote(place):
        folder = expanded(place)
        if not folder.is_dir():
            raise UserError(f"{place!r} is not a folder: give the folder of a store, or its address")
        return LocalFiles(folder)
    scheme, _, rest = place.partition("://")
    if scheme not in SCHEMES or not rest.partition("/")[0]:
        raise UserError(
            f"the store {place!r} is not understood: give a folder, or an address such as "
            f"{' or '.join(f'{scheme}://bucket/prefix' for scheme in SCHEMES)}"
        )
    return RemoteFiles(place, expanded(cache or default_cache()), cache_bytes)


def is_remote(place: str) -> bool:
    """Whether it is written as an address."""
    return "://" in place


def default_cache() -> Path:
    """In the user's folder of caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "panscope" / "stores"
