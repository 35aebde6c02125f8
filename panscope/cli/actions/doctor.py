"""`panscope doctor`: what this machine has, what it lacks, and which kernels a run here would use."""

import json
import os
import platform
from importlib import metadata

import torch
from rich.console import Console

import panscope
from panscope import builtin
from panscope.cli.flags.doctor import Doctor
from panscope.cost.this_machine import product_flops
from panscope.kernels.choose import sparse_kernels

_GIB = 2**30


def run(flags: Doctor, console: Console) -> int:
    """Print it."""
    for title, lines in (("versions", _versions()), ("machine", _machine()), ("kernels", _kernels())):
        console.print(f"[bold]{title}[/bold]")
        for name, value in lines.items():
            console.print(f"  {name:<18} {value}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _versions() -> dict[str, str]:
    """Every dependency's installed version, and the tested one where it differs."""
    versions = {"panscope": panscope.__version__, "python": platform.python_version()}
    tested: dict[str, list[str]] = json.loads(builtin.TESTED_VERSIONS.read_text(encoding="utf-8"))
    for library, releases in tested.items():
        installed = _installed(library)
        is_tested = installed.partition("+")[0] in releases  # behind the plus is the build
        versions[library] = installed if is_tested else f"{installed} (tested with {' and '.join(releases)})"
    return versions | {"triton": _installed("triton")}


def _installed(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


def _machine() -> dict[str, str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    found = {
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads",
        "memory": f"{memory:.1f} GiB",
        "cpu products": f"float32 {_gigaflops(torch.float32)}, bfloat16 {_gigaflops(torch.bfloat16)} GFLOP/s "
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
        found[name] = f"sparse: {sparse.detail}" if sparse.kernels is not None else f"reference only: {sparse.detail}"
    found["always there"] = "reference (every latent of every row, by autograd)"
    found["chosen by"] = 'train.kernels in a suite file, or --kernels: "auto", "sparse" or "reference"'
    return found


def _gigaflops(dtype: torch.dtype) -> str:
    return f"{product_flops(dtype, torch.device('cpu')) / 1e9:.3g}"
