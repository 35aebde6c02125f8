"""Where a store is told by how it is written: a folder on this machine, or an address in an object store."""

import os
from pathlib import Path

from panscope.activations.store.remote import SCHEMES, RemoteFiles
from panscope.activations.store.store import Store
from panscope.types import UserError


def open_store(place: str, *, cache: Path | None, cache_bytes: int) -> Store:
    """The store at `place`; of a remote one at most `cache_bytes` bytes are kept in the folder `cache`.

    Raises UserError if there is no store there, or it cannot be read.
    """
    scheme, is_url, rest = place.partition("://")
    if not is_url:
        return Store.open(Path(place).expanduser())
    if scheme not in SCHEMES or not rest.partition("/")[0]:
        raise UserError(
            f"the store {place!r} is not understood: give a folder, or an address such as "
            f"{' or '.join(f'{scheme}://bucket/prefix' for scheme in SCHEMES)}"
        )
    return Store(RemoteFiles(place, (cache or default_cache()).expanduser(), cache_bytes))


def default_cache() -> Path:
    """In the user's folder of caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "panscope" / "stores"
