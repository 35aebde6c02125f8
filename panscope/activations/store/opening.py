"""Opening a store by its location: a local folder, or the address of an object store."""

from pathlib import Path

from panscope.activations.store.files import Files, LocalFiles
from panscope.activations.store.remote import SCHEMES, RemoteFiles
from panscope.activations.store.store import Store
from panscope.config import expanded
from panscope.storage.user_cache import user_cache
from panscope.types import UserError


def open_store(location: str, *, cache: Path | None, cache_bytes: int) -> Store:
    """The store at `location`; at most `cache_bytes` bytes of a remote one are cached in the folder `cache`.

    Raises UserError if there is no store, or it cannot be read.
    """
    if not is_remote(location):
        return Store.open(expanded(location))
    return Store(open_files(location, cache=cache, cache_bytes=cache_bytes))


def open_files(location: str, *, cache: Path | None, cache_bytes: int) -> Files:
    """The files at `location`, which need not be a store; raises UserError if there is no such folder or address."""
    if not is_remote(location):
        folder = expanded(location)
        if not folder.is_dir():
            raise UserError(f"{location!r} is not a folder: give the folder of a store, or its address")
        return LocalFiles(folder)
    scheme, _, rest = location.partition("://")
    if scheme not in SCHEMES or not rest.partition("/")[0]:
        raise UserError(
            f"the store {location!r} is not a valid location: give a folder, or an address such as "
            f"{' or '.join(f'{scheme}://bucket/prefix' for scheme in SCHEMES)}"
        )
    return RemoteFiles(location, expanded(cache or default_cache()), cache_bytes)


def is_remote(location: str) -> bool:
    """Whether `location` is an address and not a local folder."""
    return "://" in location


def default_cache() -> Path:
    """The folder for cached stores in the user's cache folder."""
    return user_cache() / "stores"
