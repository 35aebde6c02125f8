"""The decorators that compile this package's kernels with Numba.

Kernels are compiled at the first call with each set of argument types, run without the global interpreter lock, and are
cached on disk: in `NUMBA_CACHE_DIR` if that is set, else next to the source, else in the user's cache folder. Numba
considers a cached kernel stale if the kernel's own file or its closure variables changed; so each kernel closes over a
hash of the whole package, whose helpers are inlined in it. That hash is also part of the file names: Numba unpickles
the argument types in an old file before it checks whether it is stale, which fails if a class was renamed.

Sums may be reordered and contracted (`reassoc`, `contract`), which vectorises them; NaN and infinity stay valid.
Kernels do not allocate and do not count references (`_nrt`): counting costs more than the arithmetic of many a row.
"""

import hashlib
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

import numba

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "error_model": "numpy",
    "_nrt": False,
}


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that Python calls, at its first call; warns if there is no folder to cache it in."""
    function = _with_closure(_package_hash(), function)
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        _warn_not_cached()
        return numba.njit(**_OPTIONS)(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Inline a function into the kernels that call it: a call with many arrays costs as much as a row."""
    return numba.njit(forceinline=True, **_OPTIONS)(function)


@cache
def _warn_not_cached() -> None:
    warnings.warn(
        "Numba finds no writable folder to cache kernels in, so every process compiles them again (about 10 s): "
        "set NUMBA_CACHE_DIR to a folder that can be written",
        RuntimeWarning,
        stacklevel=4,
    )


@cache
def _package_hash() -> str:
    """A hash of all source files of this package."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _with_closure(value: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with an unused variable of this value in its closure."""
    assert isinstance(function, FunctionType)
    assert not function.__closure__
    code = function.__code__.replace(co_freevars=("package",))
    closing = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, (CellType(value),))
    closing.__module__, closing.__qualname__ = function.__module__, f"{function.__qualname__}-{value[:16]}"
    closing.__doc__ = function.__doc__
    return closing
