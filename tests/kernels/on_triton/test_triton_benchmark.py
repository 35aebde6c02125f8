"""The GPU benchmark's step learns, at a size the interpreter can run; without a GPU the benchmark says so."""

import importlib
from typing import Any

import pytest
import torch

from panscope.types import UserError


@pytest.fixture
def gpu_step(device: torch.device) -> Any:
    return importlib.import_module("benchmarks.gpu.step")


@pytest.mark.parametrize("selection", ["topk", "above"])
def test_the_step_learns(gpu_step: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch, selection: str) -> None:
    monkeypatch.setattr(gpu_step, "BATCHES", 2)
    step, marks, losses = gpu_step.Step(gpu_step.Shape(4, 12, 20, 3), selection, device), [], []
    for _ in range(2 * gpu_step.BATCHES):
        step.learn(marks.append)
        losses.append(step.loss.item())
    step.measure_norms(marks.append)
    assert marks[-2:] == ["norm encoder", "norm decoder"]
    assert marks[:7] == ["rows", selection, "reconstruct", "group", "biases", "update encoder", "update decoder"]
    assert sum(losses[gpu_step.BATCHES :]) < sum(losses[: gpu_step.BATCHES])
    fresh = step.kernels.screen(step.W_enc)
    torch.testing.assert_close(step.screen.size, fresh.size)
    torch.testing.assert_close(step.W_dec.norm(dim=1), torch.ones(20))


def test_floors_and_utilisation(gpu_step: Any) -> None:
    """By hand: 2 x 4096 x 3584 x 131072 FLOP at 500 TFLOP/s are 7.70 ms; 26 x 131072 x 3584 bytes at 4 TB/s 3.05 ms."""
    best, shape = {"tflops_float16": 500.0, "gb_per_s": 4000.0}, gpu_step.SHAPES[0]
    floors = gpu_step.least(shape, 0, best)
    assert floors["product"] == pytest.approx(7.697, abs=1e-3)
    assert floors["update encoder"] == pytest.approx(3.053, abs=1e-3)
    found = gpu_step.utilisation(shape, 0, 2 * floors["product"], best)
    assert found["mfu_actual"] == pytest.approx(0.5, abs=1e-3)
    assert found["mfu_dense_equivalent"] == pytest.approx(2.5, abs=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu(gpu_step: Any) -> None:
    with pytest.raises(UserError, match="needs a GPU"):
        gpu_step.main(gpu_step.Options())
