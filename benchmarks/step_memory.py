"""The most memory a contestant's steps take beyond its weights and Adam's moments, measured in a process of its own.

Run as `python -m benchmarks.step_memory CASE NAME`, it prints one line of JSON. A small case is stepped first, so that
libraries, threads and compiled kernels are there already and not counted; what torch.compile makes is for one shape, so
there it is the case itself. The peak is the kernel's own (VmHWM), started again after the contestant is built. Linux
only.
"""

import gc
import json
import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import step_contestants
from benchmarks.step_case import Case
from benchmarks.step_rows import make_rows
from panscope.types import UserError

_STEPS = 3
_SELF = Path("/proc/self")
_REPOSITORY = Path(__file__).parent.parent


def beyond_bytes(case: Case, name: str) -> int:
    """What a contestant takes, in a new process; raises UserError if that process fails."""
    command = [sys.executable, "-m", "benchmarks.step_memory", str(case), name]
    done = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the memory of {name!r} could not be measured:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])["beyond_bytes"]


def measure(case: Case, name: str) -> int:
    """The same in this process."""
    _warm_up(case if "compiled" in name else case.small(), name)
    torch.compiler.reset()  # it would hold on to the weights
    gc.collect()
    batches = make_rows(case, 2)
    before = _status("VmRSS")
    contestant = step_contestants.build(case, name, batches)
    (_SELF / "clear_refs").write_text("5")  # the peak starts again from what is resident now
    for step in range(_STEPS):
        contestant.step(batches[step % len(batches)])
    return _status("VmHWM") - before - contestant.held_bytes()


def _warm_up(case: Case, name: str) -> None:
    batches = make_rows(case, 2)
    contestant = step_contestants.build(case, name, batches)
    for rows in batches:
        contestant.step(rows)


def _status(field: str) -> int:
    """Bytes."""
    for line in (_SELF / "status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise UserError(f"/proc/self/status has no {field}: memory can be measured on Linux only")


if __name__ == "__main__":
    found = measure(Case.parse(sys.argv[1]), " ".join(sys.argv[2:]))
    Console(width=10_000).print(json.dumps({"beyond_bytes": found}), highlight=False)
