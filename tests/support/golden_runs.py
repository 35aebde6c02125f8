"""Four small runs on the built-in model whose numbers are kept in tests/golden: a change of structure changes none.

`measure` trains one of them and gives everything that is compared: the logged training curve, the evaluation, and of
every tensor of the finished coders a checksum and a few numbers in float64.
"""

import hashlib
import json
import platform
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from panscope import api

FOLDER = Path(__file__).parent.parent / "golden"
CURVES = ("loss", "fvu", "l0")
NUMBERS = ("fvu", "l0", "mse", "delta_loss")


def _suite(name: str, **coders: Any) -> dict[str, Any]:
    return {
        "name": name,
        "seed": 3,
        "tokens": 12_800,
        "model": {"device": "cpu"},
        "data": {"text": ["panscope://demo"], "sequences": 8, "context": 64},
        "eval": {"tokens": 1500, "probes": 16},
        "train": {"batch": 128, "kernels": "reference"},
        "activations": {"buffer_rows": 6400},
        "coders": [{"layers": [1], "width": 128, "sites": ["resid_post"]} | coders],
    }


SUITES: dict[str, dict[str, Any]] = {
    "topk": _suite("topk", architecture="topk", sparsity=8),
    "jumprelu": _suite("jumprelu", architecture="jumprelu", sparsity=3e-3),
    "batchtopk-transcoder": _suite(
        "batchtopk-transcoder",
        architecture="batchtopk",
        sparsity=8,
        wiring="transcoder",
        sites=["mlp_in_no_gain -> mlp_out"],
    ),
    "multilayer": _suite("multilayer", architecture="topk", sparsity=8, wiring="multilayer", layers="all"),
}


def measure(name: str, out: Path) -> dict[str, Any]:
    """Train the suite `name` in the new folder `out`."""
    results = api.train(SUITES[name], out, quiet=True)
    assert results is not None
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "environment": environment(),
        "curve": [{key: line[key] for key in ("step", *CURVES)} for line in lines],
        "evaluation": {coder: {key: own.fields[key] for key in NUMBERS} for coder, own in results.items()},
        "weights": {coder: _weights(out / "coders" / coder / "weights.safetensors") for coder in results},
    }


def environment() -> dict[str, str]:
    """What the last bits of a CPU's numbers depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_flags": hashlib.sha256(flags[1].encode()).hexdigest()[:16] if flags else "unknown",
    }


def _weights(path: Path) -> dict[str, Any]:
    return {name: _summary(tensor) for name, tensor in sorted(safetensors.torch.load_file(path).items())}


def _summary(tensor: Tensor) -> dict[str, Any]:
    exact = tensor.double().flatten()
    return {
        "sha256": hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest(),
        "norm": float(exact.norm()),
        "sum_of_cubes": float((exact**3).sum()),
    }
