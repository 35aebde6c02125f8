"""Every kernel compiles for GPUs, which the interpreter does not test; this needs no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

NAMES = {
    "_narrow", "_tops", "_kth", "_gather", "_lists", "_scan", "_arrange", "_choose", "_find", "_flat", "_keep",
    "_reconstruct", "_sum_stretch", "_squares", "_add_rows", "_update", "_update_wide",
}  # fmt: skip
MOST_SHARED = 99 << 10
"""Shared memory in bytes of a program on the smallest of the supported GPUs."""
MOST_LOCAL = 64
"""Bytes that a thread may spill; `_scan` runs rarely and may spill more."""


@pytest.mark.parametrize("architecture", [80, 90])
def test_every_kernel_compiles(device: torch.device, tmp_path: Path, architecture: int) -> None:
    script = Path(__file__).parents[2] / "support" / "compile_for_gpu.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, script, str(architecture)],
        capture_output=True, text=True, check=False,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["name"] for kernel in found} == NAMES
    for kernel in found:
        assert kernel["shared"] <= MOST_SHARED, kernel
        assert kernel["stack"] <= MOST_LOCAL or kernel["name"] == "_scan", kernel
