"""Peak memory of one contestant's training steps beyond its parameters and Adam's moments, in its own process.

    python -m benchmarks.step.memory CASE CONTESTANT

prints one line of JSON, and `benchmarks.step.race` runs that for each contestant. A small case is stepped first, so
that libraries, threads and compiled kernels are already loaded and not counted; torch.compile compiles for one shape,
so there the warm-up is the case itself. The peak is the kernel's own count (VmHWM), reset after the contestant is
built. Linux only.
"""

import gc
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from benchmarks.step import contestants
from benchmarks.step.case import Case
from benchmarks.step.rows import make_rows
from benchmarks.support.command_line import run_command
from benchmarks.support.processes import print_json, run_module
from panscope.types import UserError

_STEPS = 3
_SELF = Path("/proc/self")


@dataclass(frozen=True)
class Options:
    """Peak memory of one contestant's steps beyond parameters and Adam's moments."""

    case: tyro.conf.Positional[str]
    """ARCHITECTURE:BxDxF@ACTIVE."""
    contestant: tyro.conf.Positional[str]
    """A tool and its setting, such as "saelens bf16"."""


def beyond_bytes(case: Case, name: str) -> int:
    """The peak of the contestant `name` in a new process, in bytes; raises UserError if that process fails."""
    return run_module("benchmarks.step.memory", str(case), name)["beyond_bytes"]


def main(options: Options) -> None:
    """Measure in this process and print."""
    print_json({"beyond_bytes": measure(Case.parse(options.case), options.contestant)})


def measure(case: Case, name: str) -> int:
    """The peak of the contestant `name` in this process, in bytes."""
    _warm_up(case if "compiled" in name else case.small(), name)
    torch.compiler.reset()  # its caches would keep the warm-up's parameters in memory
    gc.collect()
    batches = make_rows(case, 2)
    before = _status("VmRSS")
    contestant = contestants.build(case, name, batches)
    (_SELF / "clear_refs").write_text("5")  # resets the peak to what is resident now
    for step in range(_STEPS):
        contestant.step(batches[step % len(batches)])
    return _status("VmHWM") - before - contestant.held_bytes()


def _warm_up(case: Case, name: str) -> None:
    batches = make_rows(case, 2)
    contestant = contestants.build(case, name, batches)
    for rows in batches:
        contestant.step(rows)


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes; raises UserError where there is none."""
    path = _SELF / "status"
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise UserError(f"{str(path)!r} has no {field}: memory can be measured on Linux only; give --no-memory elsewhere")


if __name__ == "__main__":
    run_command(main, Options)
