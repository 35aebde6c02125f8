"""A step whose rows are processed in parts has the loss, gradient and figures of the whole batch, exactly.

Every architecture, option and wiring's shape, dense and sparse, in float64 against the oracle of the whole batch; and
this machine's kernels in float32.

Shape letters: B rows, F latents.
"""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from panscope.coders import auxk
from panscope.coders.base import Coder
from panscope.coders.batchtopk import BatchTopKCoder
from panscope.kernels.cpu import CpuKernels
from panscope.ops.base import Rows
from panscope.ops.batch import BatchInParts, PartOfBatch
from panscope.ops.dense import DenseOps
from panscope.ops.sparse import SparseOps
from panscope.training.accumulation import StepSums, accumulate
from tests.support.coder_cases import (
    B,
    F,
    assert_close,
    every_case,
    every_option,
    every_shape,
    random_coder,
    random_rows,
)
from tests.support.oracle import Oracle
from tests.support.plain_kernels import PlainKernels, dense_gradient

in_parts = pytest.mark.parametrize("parts", [2, 3, B])
"""Of 7 rows: 4 and 3; 3, 3 and 1; one each."""


def gradients(coder: Coder, rows: Rows, parts: int, ops: DenseOps | SparseOps) -> tuple[StepSums, dict[str, Tensor]]:
    """The sums of a step in parts, and the gradient of every learned parameter."""

    def backward(loss: Tensor) -> None:
        loss.backward()
        ops.end_part()

    ops.begin()
    found = accumulate(rows, parts, lambda part: coder.objective(part, coder.config.sparsity, ops), backward, 0.0)
    accumulated = {}
    for name, parameter in coder.named_parameters():
        if isinstance(ops, SparseOps) and name in ("W_enc", "W_dec"):
            assert parameter.grad is None, "a dense gradient was formed by autograd"
            accumulated[name] = dense_gradient(parameter.detach(), ops.gradient(parameter))
        elif parameter.requires_grad:
            assert parameter.grad is not None, name
            accumulated[name] = parameter.grad
    return found, accumulated


def set_guess(coder: Coder, rows: Rows, factor: float = 1.0) -> None:
    """Sparse BatchTopK looks near its running threshold: `factor` times what this batch keeps."""
    if isinstance(coder, BatchTopKCoder):
        least = coder.objective(rows, coder.config.sparsity, DenseOps()).least
        assert least is not None
        coder.threshold.copy_(least * factor)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["dense", "sparse"])
@every_case
def test_loss_and_gradient_are_those_of_the_whole_batch(architecture: str, fields: dict[str, Any], kind: str) -> None:
    check_against_the_whole(architecture, fields, kind, 3)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@every_shape
def test_in_every_shape(architecture: str, fields: dict[str, Any], kind: str) -> None:
    check_against_the_whole(architecture, fields, kind, 3)


@pytest.mark.parametrize("parts", [2, B])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
@every_option
def test_however_many_parts(architecture: str, fields: dict[str, Any], kind: str, parts: int) -> None:
    check_against_the_whole(architecture, fields, kind, parts)


def check_against_the_whole(architecture: str, fields: dict[str, Any], kind: str, parts: int) -> None:
    coder = random_coder(architecture, fields)
    rows = random_rows(coder, weighted=True)
    set_guess(coder, rows)
    expected = Oracle(coder, rows, coder.config.sparsity).expected()
    ops = DenseOps() if kind == "dense" else SparseOps(PlainKernels(), max_active_fraction=1.0)
    found, accumulated = gradients(coder, rows, parts, ops)
    assert_close(found.loss, expected.loss)
    assert_close(found.error, (expected.y_hat - rows.y).square().sum())
    assert found.rows == B and found.active == (expected.codes > 0).sum()
    assert torch.equal(found.firings, (expected.codes > 0).sum(dim=0))
    assert accumulated.keys() == expected.gradients.keys()
    for name, gradient in accumulated.items():
        assert_close(gradient, expected.gradients[name])


@every_option
def test_this_machines_kernels_add_up_parts(architecture: str, fields: dict[str, Any]) -> None:
    exact = random_coder(architecture, fields).float().double()
    given = random_rows(exact)
    rows = Rows(given.x.float(), given.y.float(), given.weights.float(), given.dead)
    exact_rows = Rows(rows.x.double(), rows.y.double(), rows.weights.double(), rows.dead)
    set_guess(exact, exact_rows, 0.9)
    expected = Oracle(exact, exact_rows, exact.config.sparsity).expected()
    coder = random_coder(architecture, fields).float()
    set_guess(coder, rows, 0.9)
    ops = SparseOps(CpuKernels(torch.float32), max_active_fraction=1.0)
    found, accumulated = gradients(coder, rows, 3, ops)
    assert abs(float(found.loss) - float(expected.loss)) <= 1e-5 * abs(float(expected.loss))
    for name, gradient in accumulated.items():
        difference = (gradient.double() - expected.gradients[name]).abs().max()
        assert difference <= 1e-5 * expected.gradients[name].abs().max(), name


@pytest.mark.parametrize("codes", [1, 9])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("option", [{}, {"auxk_bias": True}, {"auxk": 9}])
def test_auxk_in_bounded_memory(option: dict[str, Any], kind: str, codes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dense product is computed for a few rows at a time, and again in the backward pass."""
    monkeypatch.setattr(auxk, "AUXK_CODES", codes)
    most = 0
    whole = DenseOps.topk

    def topk(self: DenseOps, encoder: Any, rows: Rows, k: int, norms: Tensor | None) -> Any:
        nonlocal most
        if len(encoder.W) < F:
            most = max(most, len(rows.x) * len(encoder.W))
        return whole(self, encoder, rows, k, norms)

    monkeypatch.setattr(DenseOps, "topk", topk)
    check_against_the_whole("topk", {"d_in": 6, "d_out": 6, "auxk_coefficient": 0.4} | option, kind, 1)
    assert 0 < most <= max(codes, F)


@pytest.mark.parametrize("factor", [0.5, 3.0])
@in_parts
def test_a_wrong_guess_of_the_batch_threshold_costs_passes_only(factor: float, parts: int) -> None:
    coder = random_coder("batchtopk", {"d_in": 6, "d_out": 6, "auxk_coefficient": 0.4, "auxk": 2})
    rows = random_rows(coder)
    set_guess(coder, rows, factor)
    expected = Oracle(coder, rows, coder.config.sparsity).expected()
    found, accumulated = gradients(coder, rows, parts, SparseOps(PlainKernels(), max_active_fraction=1.0))
    assert_close(found.loss, expected.loss)
    for name, gradient in accumulated.items():
        assert_close(gradient, expected.gradients[name])


@in_parts
def test_of_equal_scores_as_many_are_kept_as_in_the_whole_batch(parts: int) -> None:
    """All rows are the same, so every score occurs B times and a batch threshold falls among equal ones."""
    coder = random_coder("batchtopk", {"d_in": 6, "d_out": 6, "sparsity": 3, "width": 11})
    one = random_rows(coder)
    rows = Rows(one.x[:1].expand(B, -1), one.y[:1].expand(B, -1), one.weights, one.dead)
    set_guess(coder, rows)
    for ops in (DenseOps(), SparseOps(PlainKernels(), max_active_fraction=1.0)):
        coder.zero_grad(set_to_none=True)
        found, _ = gradients(coder, rows, parts, ops)
        assert found.active == 3 * B


@pytest.mark.parametrize("count", [1, 5, 12, 40])
def test_the_largest_of_parts_are_those_of_a_sort(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randint(-3, 6, (size,), generator=generator).float() for size in (4, 0, 9, 13)]
    batch = BatchInParts(4)

    def selected(part: int) -> tuple[Tensor, Tensor]:
        return PartOfBatch(batch, part, 1).largest(scores[part], count)

    batch.collect([partial(selected, part) for part in range(4)])
    kept = [float(scores[part][index]) for part in range(4) for index in selected(part)[0]]
    expected = sorted((float(score) for part in scores for score in part if score > 0), reverse=True)[:count]
    assert sorted(kept, reverse=True) == expected
    assert {float(selected(part)[1]) for part in range(4)} == {min(expected, default=math.inf)}


def test_a_quantity_costs_one_pass_over_the_parts() -> None:
    """And one computation that stops; besides these, every part is computed once."""
    for architecture, fields, quantities in (
        ("topk", {}, 0),
        ("batchtopk", {}, 1),
        ("topk", {"auxk_coefficient": 0.4, "auxk_bias": True}, 1),
        ("batchtopk", {"auxk_coefficient": 0.4}, 3),
    ):
        coder = random_coder(architecture, {"d_in": 6, "d_out": 6} | fields)
        calls = 0

        def objective(part: Rows, coder: Coder = coder) -> Any:
            nonlocal calls
            calls += 1
            return coder.objective(part, 3, DenseOps())

        accumulate(random_rows(coder), 3, objective, lambda loss: loss.backward(), 0.0)
        assert calls == 3 + quantities * (3 + 1)
