"""Work done in a process of its own that is killed at random moments, again and again, until it is left alone.

The processes are forked from one that has imported everything, so that a life is short work and no import. SIGKILL is
sent after a random share of the time that an undisturbed life takes; all moments follow from a seed.
"""

import multiprocessing
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_IMPORTED = ["panscope.cli.main"]
_PATIENCE = 300
"""Seconds that a life may take at most."""


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


def nothing() -> None:
    """Work that only has everything imported for the lives to come."""


def begun(work: Callable[..., None], *arguments: Any) -> Any:
    """The process of a life that has begun."""
    process = _context().Process(target=work, args=arguments)
    process.start()
    return process


def live(work: Callable[..., None], *arguments: Any) -> float:
    """Do the work undisturbed; how many seconds it took. The process must end well."""
    if work is not nothing:
        live(nothing)
    began = time.monotonic()
    process = begun(work, *arguments)
    process.join(_PATIENCE)
    assert process.exitcode == 0, f"the process ended with {process.exitcode}"
    return time.monotonic() - began


def live_killed(seed: int, kills: int, longest: float, folder: Path, work: Callable[..., None], *more: Any) -> None:
    """Kill the work on `folder` so many times within `longest` seconds, then let it end.

    What was done when no kill came in time is removed, and the work begins anew.
    """
    draw, died = random.Random(seed), 0
    while died < kills:
        process = begun(work, folder, *more)
        process.join(draw.uniform(0, longest))
        process.kill()
        process.join(_PATIENCE)
        assert process.exitcode in (0, -9), f"the process ended with {process.exitcode}"
        died += process.exitcode == -9
        if process.exitcode == 0:
            shutil.rmtree(folder)
    live(work, folder, *more)


def assert_same_files(a: Path, b: Path, but: Callable[[Path], bool] = lambda path: False) -> None:
    """Every file of two folders has the same bytes, hidden ones and those of `but` left out."""

    def files(folder: Path) -> list[Path]:
        every = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return sorted(path for path in every if not path.name.startswith(".") and not but(path))

    assert files(a) == files(b)
    assert files(a)
    for path in files(a):
        assert (a / path).read_bytes() == (b / path).read_bytes(), path
