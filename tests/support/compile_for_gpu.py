"""Compile every kernel for a GPU that is not there, and print one JSON line a kernel. Run as a script, with the
architecture (90 for Hopper) as its argument.

Triton's compiler needs no GPU: a driver that only names one is enough. Kernels are called as ever, with tensors of real
widths; each call ends once its kernel is compiled, so results are left as they were allocated.

Shape letters: B rows, D input width, F latents, K codes a row, N entries.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from panscope.kernels import triton as ours
from panscope.kernels.backend import AdamStep, Contribution, Entries, Finish, Gradient

B, D, F, K = 16, 2304, 4096, 100
WIDE = 9216
_RUN = jit.JITFunction.run


def pretend(architecture: int) -> None:
    """Name a GPU, and stop each launch once its kernel is compiled."""
    gpu: Any = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", architecture, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    driver.set_active(gpu)
    seen: dict[int, Any] = {}

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel: Any = _RUN(self, *arguments, grid=grid, warmup=True, **options)
        if id(kernel) not in seen:
            seen[id(kernel)] = kernel
            sys.stdout.write(json.dumps({"name": kernel.metadata.name} | resources(kernel)) + "\n")
        return kernel

    jit.JITFunction.run = run
    # The one thing the host asks the device: how many candidates and entries there are.
    torch.Tensor.tolist = lambda self: [64, 64]


def resources(kernel: Any) -> dict[str, int]:
    """Registers and bytes of local memory a thread, bytes of shared memory a program."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(kernel.asm["cubin"])
        said = subprocess.run([tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True).stdout
    fields = dict(field.split(":") for field in said.split() if field.count(":") == 1 and field[0].isupper())
    return {name.lower(): int(fields[name]) for name in ("REG", "STACK", "SHARED")}


def call_everything(kernels: Any) -> None:
    """Every kernel in the variants a training step uses."""
    x, W, b = torch.zeros(B, D), torch.zeros(F, D), torch.zeros(F)
    rows, screen = kernels.rows(x.bfloat16(), torch.zeros(D)), kernels.screen(W)
    kernels.topk(rows, W, b, screen, K, None)
    kernels.topk(rows, W, b, screen, K, b)
    kernels.above(rows, W, b, screen, b, B * F // 8)
    latents, values = torch.randint(0, F, (B * K,)), torch.zeros(B * K)
    codes = Entries(values, latents, torch.arange(0, B * K + 1, K))
    kernels.reconstruct(codes, W, torch.zeros(D), x, b[:B], (F,))
    kernels.reconstruct(codes, W, x, x, b[:B], (F // 2, F))
    grouped = kernels.group(latents, F)
    summed = Gradient(Contribution(values, x, torch.arange(B * K) // K, grouped))
    everything = Gradient(summed.contribution, b, torch.zeros(F, dtype=torch.int64), x)
    adam = AdamStep(0.1, 0.9, 0.999, 1e-8, 1, torch.tensor(1.0), torch.tensor(True))
    for gradient in (summed, everything):
        kernels.squared_norm(W, gradient, True)
        kernels.add_gradient(W, gradient, W)
        kernels.update(W, W, W, gradient, adam, Finish(screen=screen))
        kernels.update(W, W, W, gradient, adam, Finish(project=True, unit=True))
        kernels.update(W, W, W, gradient, adam, Finish(norms=b))
    broad = torch.zeros(16, WIDE)
    kernels.update(broad, broad, broad, Gradient(), adam, Finish(True, True, kernels.screen(broad)))


if __name__ == "__main__":
    pretend(int(sys.argv[1]))
    call_everything(ours.TritonKernels())
