"""`panscope doctor`: what this machine has, what it lacks, and which kernels a run here would use."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util

import torch
from rich.console import Console
from torch import Tensor

import panscope
from panscope.kernels.choose import sparse_kernels

_LIBRARIES = ("torch", "transformers", "datasets", "safetensors", "numba", "triton")
_PRODUCT = (2048, 512, 4096)
"""Rows, inner and outer width of the measured product."""
_REPEATS = 5
_GIB = 2**30


@dataclass(frozen=True)
class Doctor:
    """Say what this machine has and which kernels a run here would use; measures two matrix products, takes seconds.

    For example
      panscope doctor
    """

    def run(self, console: Console) -> int:
        """Print it; the exit status."""
        for title, lines in (("versions", _versions()), ("machine", _machine()), ("kernels", _kernels())):
            console.print(f"[bold]{title}[/bold]")
            for name, value in lines.items():
                console.print(f"  {name:<14} {value}", markup=False, highlight=False, soft_wrap=True)
        return 0


def _versions() -> dict[str, str]:
    versions = {"panscope": panscope.__version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        there = util.find_spec(library) is not None
        versions[library] = metadata.version(library) if there else "not installed"
    return versions


def _machine() -> dict[str, str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    found = {
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads",
        "memory": f"{memory:.1f} GiB",
        "cpu products": f"float32 {_gigaflops(torch.float32):.0f}, bfloat16 {_gigaflops(torch.bfloat16):.0f} GFLOP/s "
        "(one large product, this minute)",
    }
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        found[f"cuda:{number}"] = f"{card.name}, {card.total_memory / _GIB:.1f} GiB"
    if not torch.cuda.is_available():
        found["gpu"] = "none that torch can use"
    return found


def _kernels() -> dict[str, str]:
    """For every device that is here, what `train.kernels = "auto"` finds."""
    found = {}
    for name in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        sparse = sparse_kernels(torch.device(name))
        found[name] = f"sparse: {sparse.why}" if sparse.kernels is not None else f"reference only: {sparse.why}"
    found["always there"] = "reference (every latent of every row, by autograd)"
    found["chosen by"] = 'train.kernels in a suite file, or --kernels: "auto", "sparse" or "reference"'
    return found


def _gigaflops(dtype: torch.dtype) -> float:
    """The median rate of one product of random numbers into memory that is there already."""
    rows, inner, outer = _PRODUCT
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows, inner, generator=generator).to(dtype)
    b = torch.randn(inner, outer, generator=generator).to(dtype)
    out = torch.empty(rows, outer, dtype=dtype)
    return 2 * rows * inner * outer / _median_seconds(lambda: torch.mm(a, b, out=out)) / 1e9


def _median_seconds(work: Callable[[], Tensor]) -> float:
    work()
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return sorted(times)[_REPEATS // 2]
