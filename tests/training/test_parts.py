"""Training whose steps are processed in parts is training with whole steps: same curves, same figures, same resume."""

from typing import Any

import pytest
import torch

from panscope.kernels.backend import Kernels
from panscope.kernels.choose import sparse_kernels
from panscope.training.coder_trainer import CoderTrainer, StepBackend
from tests.support.planted import ARCHITECTURES, SCALES, STEPS, batch, trainer, wired
from tests.training.test_sparse_training import learner, sparse_steps

PARTS, SPARSE_STEPS = 3, 120
kinds = pytest.mark.parametrize("kind", ARCHITECTURES)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    found = sparse_kernels(torch.device("cpu"))
    assert found.kernels is not None, found.detail
    return found.kernels


def in_parts(kind: str, parts: int, **training: Any) -> CoderTrainer:
    whole = trainer(kind, training)
    backend = StepBackend(parts=parts)
    return CoderTrainer(kind, whole.coder, whole.wiring, SCALES, whole.config, steps=STEPS, backend=backend)


def curve(learner: CoderTrainer) -> torch.Tensor:
    """Loss, FVU and L0 of every step."""
    figures = []
    for step in range(STEPS):
        learner.step(batch(step), step)
        read = learner.read(step + 1)
        figures.append([read["loss"], read["fvu"], read["l0"], read["dead_fraction"]])
    return torch.tensor(figures, dtype=torch.float64)


@kinds
def test_the_curves_are_those_of_whole_steps(kind: str):
    expected, found = curve(in_parts(kind, 1)), curve(in_parts(kind, PARTS))
    assert torch.allclose(found[:10], expected[:10], rtol=1e-5)
    assert torch.allclose(found, expected, rtol=1e-3)


@kinds
def test_sparse_steps_in_parts_are_the_references(kind: str, kernels: Kernels):
    expected, _ = sparse_steps(learner(kind, None), SPARSE_STEPS)
    whole = learner(kind, kernels)
    backend = StepBackend(kernels, PARTS)
    one = CoderTrainer(kind, whole.coder, whole.wiring, whole.normaliser, whole.config, steps=200, backend=backend)
    found, sparse = sparse_steps(one, SPARSE_STEPS)
    assert sparse >= SPARSE_STEPS // 4, "hardly a step was sparse: this compares the reference with itself"
    assert torch.allclose(found[:20], expected[:20], rtol=2e-6)
    assert torch.allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("wiring", ["sae", "multilayer", "crosscoder"])
def test_stacked_and_joined_rows_are_split_too(wiring: str):
    """Weights of a loss taken layer by layer are those of the whole batch."""
    layers = (0,) if wiring == "sae" else (0, 1, 2)
    here = wired(wiring, *layers)
    width = 6 * (3 if wiring == "crosscoder" else 1)
    curves = []
    for parts in (1, 4):
        made = trainer("topk", {"loss": "fvu"}, SCALES, here, d_in=width, d_out=width)
        backend = StepBackend(parts=parts)
        one = CoderTrainer("topk", made.coder, here, SCALES, made.config, steps=STEPS, backend=backend)
        losses = []
        for step in range(20):
            generator = torch.Generator().manual_seed(step)
            rows = {site: torch.randn(16, 6, generator=generator) for site in here.reads}
            index = torch.arange(16)
            one.step(type(batch(0))(rows, index, index, index), step)
            losses.append(one.read(step + 1)["loss"])
        curves.append(torch.tensor(losses))
    assert torch.allclose(*curves, rtol=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_accumulates(precision: str):
    expected, found = (curve(in_parts("topk", parts, precision=precision)) for parts in (1, PARTS))
    assert torch.allclose(found[:5], expected[:5], rtol=2e-2)


@kinds
def test_a_resumed_run_in_parts_has_the_same_bytes(kind: str):
    whole, first = in_parts(kind, PARTS), in_parts(kind, PARTS)
    for step in range(20):
        whole.step(batch(step), step)
        first.step(batch(step), step)
    second = in_parts(kind, PARTS)
    second.load_state_dict(first.state_dict())
    for step in range(20, 30):
        whole.step(batch(step), step)
        second.step(batch(step), step)
    for name, tensor in whole.coder.tensors().items():
        assert torch.equal(second.coder.tensors()[name], tensor), name


def test_more_parts_than_rows_are_as_many_as_rows():
    expected, found = curve(in_parts("topk", 16)), curve(in_parts("topk", 100))
    assert torch.equal(found, expected)


def test_a_loss_that_is_not_finite_changes_nothing():
    one = in_parts("topk", PARTS)
    before = one.coder.tensors()
    given = batch(0)
    next(iter(given.rows.values()))[-1] = torch.nan
    one.step(given, 0)
    for name, tensor in before.items():
        torch.testing.assert_close(one.coder.tensors()[name], tensor, rtol=1e-6, atol=1e-7)
