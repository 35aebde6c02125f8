"""What a number was measured on: the hardware and the versions that are written beside every result."""

import os
import platform
from pathlib import Path
from typing import Any

import torch


def facts() -> dict[str, Any]:
    """The CPU, the GPU (None without one), torch's threads, the cores, and the versions of torch and Python."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu(),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def _cpu() -> str:
    """The CPU's name from /proc/cpuinfo, or what `platform` knows where there is none (macOS)."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
