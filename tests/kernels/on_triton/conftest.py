"""The Triton kernels, on a GPU if there is one, else on the CPU in Triton's interpreter.

The interpreter must be requested before anything in this process imports triton.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

_SWITCH = "TRITON_INTERPRET"
_MISSING = importlib.util.find_spec("triton") is None
_EARLY = "triton" in sys.modules and os.environ.get(_SWITCH) != "1"
_GPU = torch.cuda.is_available()
if not (_MISSING or _EARLY or _GPU):
    os.environ[_SWITCH] = "1"


def _reason() -> str | None:
    """The reason why the kernels cannot run here."""
    if _MISSING:
        return "triton is not installed: pip install triton==3.7.1 beside torch 2.13"
    if _GPU:
        return None
    if _EARLY:
        return f"triton was imported before {_SWITCH}=1 was set, and there is no GPU"
    version = importlib.metadata.version("triton")
    if _numbers(version) < (3, 7) and _numbers(np.__version__) >= (2, 4):
        return f"the interpreter of triton {version} needs numpy below 2.4"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".")[:2])


@pytest.fixture(scope="session", params=["cuda" if _GPU else "cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of the kernels; the test is skipped if they cannot run."""
    reason = _reason()
    if reason is not None:
        pytest.skip(reason)
    return torch.device(request.param)


@pytest.fixture
def part(device: torch.device) -> Callable[[str], Any]:
    """A module of the kernels by name; the package without a name."""
    return lambda name: importlib.import_module(f"panscope.kernels.triton.{name}".rstrip("."))


@pytest.fixture
def kernels(device: torch.device) -> Any:
    """An instance of the kernels."""
    return importlib.import_module("panscope.kernels.triton").TritonKernels()


@pytest.fixture(autouse=True)
def on_the_device(device: torch.device) -> Iterator[None]:
    """Tensors are created on the device; warnings of the interpreter's numpy are suppressed."""
    with torch.device(device), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
