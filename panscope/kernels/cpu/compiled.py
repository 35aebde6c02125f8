"""How a loop becomes machine code: one decorator for every kernel of this package.

Compiled at the first call with each set of argument types, without Python's global lock, and kept on disk: in
`NUMBA_CACHE_DIR` if that is set, else beside the source, else in the user's cache folder. Numba takes what it finds
there for stale by the text of the kernel's own file, and of what the kernel closes over; so each kernel closes over the
text of the whole package, whose helpers it contains. The hash of that text is in the names of the files too: Numba
unpickles the argument types of an old file before it looks whether it is stale, which fails where a class was renamed.

Sums may be reordered and contracted (`reassoc`, `contract`), which vectorises them; NaN and infinity keep their sense.
Nothing is allocated and no reference counted (`_nrt`): counting costs more than many a row's arithmetic.
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
    """A function for Python to call, compiled on first use; warns where no folder can keep the machine code."""
    function = _closing_over(_package_text(), function)
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        _say_that_nothing_is_kept()
        return numba.njit(**_OPTIONS)(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function for kernels to call, which becomes part of them: a call with many arrays costs as much as a row."""
    return numba.njit(forceinline=True, **_OPTIONS)(function)


@cache
def _say_that_nothing_is_kept() -> None:
    warnings.warn(
        "Numba finds no folder it may write to, so every process compiles its kernels anew (about 10 s): "
        "set NUMBA_CACHE_DIR to a folder that can be written",
        RuntimeWarning,
        stacklevel=4,
    )


@cache
def _package_text() -> str:
    """A hash of all source files of this package."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _closing_over(value: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with one more variable in its closure, which it does not use."""
    assert isinstance(function, FunctionType)
    assert not function.__closure__
    code = function.__code__.replace(co_freevars=("package",))
    closing = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, (CellType(value),))
    closing.__module__, closing.__qualname__ = function.__module__, f"{function.__qualname__}-{value[:16]}"
    closing.__doc__ = function.__doc__
    return closing
