"""The sparse verbs give every architecture, option and shape the same loss, codes and gradients as its definition.

In float64 with kernels of a few plain lines, against the oracle: that is the bookkeeping, which sums and which rows a
gradient is made of. And in float32 with this machine's kernels, screening in bfloat16 and in float32, to 1e-5: their
single methods have tests of their own.

Shape letters: B rows, F latents.
"""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from panscope.coders.base import Coder, Objective
from panscope.coders.batchtopk import BatchTopKCoder
from panscope.kernels.backend import Kernels
from panscope.kernels.cpu import CpuKernels
from panscope.ops.base import Rows, TooDense
from panscope.ops.dense import DenseOps
from panscope.ops.sparse import SparseOps
from tests.support.coder_cases import assert_close, every_case, every_option, random_coder, random_rows
from tests.support.oracle import Oracle
from tests.support.plain_kernels import PlainKernels, dense_gradient


def guess_the_threshold(coder: Coder, rows: Rows, sparsity: float, factor: float) -> None:
    """BatchTopK looks near its running threshold: here `factor` times what this batch keeps."""
    if isinstance(coder, BatchTopKCoder):
        least = coder.objective(rows, sparsity, DenseOps()).least
        assert least is not None
        coder.threshold.copy_(least * factor)


def sparse_look(
    coder: Coder, rows: Rows, sparsity: float, kernels: Kernels | None = None
) -> tuple[Objective, dict[str, Tensor]]:
    """The objective by sparse verbs, and the gradient of every learned parameter."""
    ops = SparseOps(kernels or PlainKernels(), max_active_fraction=1.0)
    ops.begin()
    found = coder.objective(rows, sparsity, ops)
    found.loss.backward()
    gradients = {}
    for name, parameter in coder.named_parameters():
        if name in ("W_enc", "W_dec"):
            assert parameter.grad is None, "a dense gradient was formed"
            gradients[name] = dense_gradient(parameter.detach(), ops.gradient(parameter))
        elif parameter.requires_grad:
            assert parameter.grad is not None, name
            gradients[name] = parameter.grad
    return found, gradients


@every_case
def test_values_and_gradients_are_those_of_the_definition(architecture: str, fields: dict[str, Any]) -> None:
    coder = random_coder(architecture, fields)
    rows = random_rows(coder, weighted=True)
    guess_the_threshold(coder, rows, coder.config.sparsity, 1.0)
    expected = Oracle(coder, rows, coder.config.sparsity).expected()
    found, gradients = sparse_look(coder, rows, coder.config.sparsity)
    assert_close(found.loss.detach(), expected.loss)
    assert_close(found.latents.dense().detach(), expected.codes)
    assert_close(found.y_hat, expected.y_hat)
    assert_close(found.errors, (expected.y_hat - rows.y).square().sum(dim=1))
    assert gradients.keys() == expected.gradients.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, expected.gradients[name])


@pytest.mark.parametrize("screen", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@every_case
def test_this_machines_kernels_give_them_to_float32(
    architecture: str, fields: dict[str, Any], screen: torch.dtype
) -> None:
    """Weights and rows are float32 numbers on both sides; the oracle computes with them in float64."""
    exact = random_coder(architecture, fields).float().double()
    given = random_rows(exact, weighted=True)
    x, y, weights = (tensor.float() for tensor in (given.x, given.y, given.weights))
    rows = dataclasses.replace(given, x=x.double(), y=y.double(), weights=weights.double())
    guess_the_threshold(exact, rows, exact.config.sparsity, 1.0)
    expected = Oracle(exact, rows, exact.config.sparsity).expected()
    coder = random_coder(architecture, fields).float()
    if isinstance(coder, BatchTopKCoder) and isinstance(exact, BatchTopKCoder):
        coder.threshold.copy_(exact.threshold)
    found, gradients = sparse_look(
        coder, dataclasses.replace(given, x=x, y=y, weights=weights), coder.config.sparsity, CpuKernels(screen)
    )
    assert_close_to_float32(found.loss.detach(), expected.loss)
    assert_close_to_float32(found.latents.dense().detach(), expected.codes)
    assert_close_to_float32(found.y_hat, expected.y_hat)
    for name, gradient in gradients.items():
        assert_close_to_float32(gradient, expected.gradients[name])


def assert_close_to_float32(found: Tensor, expected: Tensor) -> None:
    """To 1e-5 of the largest number there."""
    difference = (found.double() - expected).abs().max()
    assert difference <= 1e-5 * expected.abs().max(), f"{difference} of {expected.abs().max()}"


@every_option
@pytest.mark.parametrize("factor", [0.5, 0.97, 3.0])
def test_a_wrong_guess_costs_time_only(architecture: str, fields: dict[str, Any], factor: float) -> None:
    coder = random_coder(architecture, fields)
    rows = random_rows(coder)
    guess_the_threshold(coder, rows, coder.config.sparsity, factor)
    expected = coder.objective(rows, coder.config.sparsity, DenseOps())
    found, _ = sparse_look(coder, rows, coder.config.sparsity)
    assert_close(found.latents.dense().detach(), expected.latents.dense().detach())
    assert (found.least is None) == (expected.least is None)
    if found.least is not None and expected.least is not None:
        assert_close(found.least, expected.least)


@every_option
def test_too_many_places_are_refused_before_they_are_touched(architecture: str, fields: dict[str, Any]) -> None:
    coder = random_coder(architecture, fields)
    with pytest.raises(TooDense):
        coder.objective(random_rows(coder), coder.config.sparsity, SparseOps(PlainKernels(), max_active_fraction=0.1))


def test_batch_topk_without_a_guess_goes_the_dense_way() -> None:
    coder = random_coder("batchtopk", {"d_in": 6, "d_out": 6})
    with pytest.raises(TooDense):
        coder.objective(random_rows(coder), 2, SparseOps(PlainKernels(), max_active_fraction=1.0))


@every_option
def test_rows_that_are_zero_touch_what_they_must(architecture: str, fields: dict[str, Any]) -> None:
    """No latent may be positive anywhere: the loss is that of the base alone, and nothing breaks."""
    coder = random_coder(architecture, fields)
    with torch.no_grad():
        coder.b_enc.fill_(-1e3)
    rows = dataclasses.replace(random_rows(coder), dead=torch.zeros(coder.config.width, dtype=torch.bool))
    if isinstance(coder, BatchTopKCoder):
        coder.threshold.fill_(0.5)
        with pytest.raises(TooDense):
            sparse_look(coder, rows, coder.config.sparsity)
        return
    expected = coder.objective(rows, coder.config.sparsity, DenseOps())
    found, gradients = sparse_look(coder, rows, coder.config.sparsity)
    assert_close(found.loss.detach(), expected.loss.detach())
    assert not found.latents.dense().any()
    assert not gradients["W_dec"].any() and not gradients["W_enc"].any()
