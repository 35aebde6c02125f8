"""Training with this machine's sparse kernels is training with the reference: same curves, same weights, same resume.

Shape letters: D width, F latents.
"""

from typing import Any

import pytest
import torch

from panscope import coders
from panscope.coders.normaliser import Normaliser
from panscope.kernels.backend import Kernels
from panscope.kernels.choose import sparse_kernels
from panscope.training.coder_trainer import CoderTrainer, StepBackend
from panscope.training.schedule import TrainingConfig
from panscope.types import ActivationBatch, Site
from tests.support.planted import ARCHITECTURES, TRAINING, WIDER, sparse_batch, wired

LATENTS, STEPS = 160, 200
SITE = wired("sae", 0)
AS_THEY_COME = Normaliser(kind="none", scale_in=1, scale_out=1)
FEW_ACTIVE: dict[str, dict[str, Any]] = {
    "jumprelu": {"threshold_init": 2.5, "bandwidth": 0.3},
    "jumprelu_target": {"threshold_init": 2.5, "bandwidth": 0.3},
    "gated": {"sparsity": 2.0},
    "relu": {"sparsity": 2.0},
    "relu_skip": {"sparsity": 4.0, "skip": False},
}
"""What makes each kind sparse enough within a few steps, where its own setting would stay dense for 200."""
kinds = pytest.mark.parametrize("kind", ARCHITECTURES)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    found = sparse_kernels(torch.device("cpu"))
    assert found.kernels is not None, found.detail
    return found.kernels


def learner(kind: str, kernels: Kernels | None, fields: dict[str, Any] | None = None, **training: Any) -> CoderTrainer:
    fixed = {"d_in": WIDER, "d_out": WIDER, "width": LATENTS, "encoder_init": "own"}
    whole = fixed | ARCHITECTURES[kind] | FEW_ACTIVE.get(kind, {}) | (fields or {})
    config = coders.config_type(kind.partition("_")[0]).read(whole, "test")
    coder = coders.build(config).initialise(torch.Generator().manual_seed(3))
    schedule = TrainingConfig.read(TRAINING | {"dead_window": 500} | training, "test")
    return CoderTrainer(kind, coder, SITE, AS_THEY_COME, schedule, steps=STEPS, backend=StepBackend(kernels))


def sparse_steps(one: CoderTrainer, steps: int) -> tuple[torch.Tensor, int]:
    """The loss of every step, and how many went the sparse way."""
    losses, sparse = [], 0
    for step in range(steps):
        one.step(sparse_batch(step), step)
        figures = one.read(step + 1)
        losses.append(figures["loss"])
        sparse += figures["kernels"] == "sparse"
    return torch.tensor(losses, dtype=torch.float64), sparse


@kinds
@pytest.mark.parametrize("extra", [{}, {"clip_norm": 0.3}], ids=["plain", "clipped"])
def test_two_hundred_steps_are_the_references(kind: str, extra: dict[str, Any], kernels: Kernels):
    """Float32 rounding differs and training makes more of it; a wrong gradient would show in the first steps."""
    fields = {"pre_encoder_bias": True} if extra else {}
    expected, none = sparse_steps(learner(kind, None, fields, **extra), STEPS)
    found, sparse = sparse_steps(learner(kind, kernels, fields, **extra), STEPS)
    assert none == 0
    assert sparse >= STEPS // 2, "hardly a step was sparse: this compares the reference with itself"
    assert torch.allclose(found[:20], expected[:20], rtol=2e-6)
    assert torch.allclose(found, expected, rtol=1e-3)


@kinds
def test_a_resumed_sparse_run_has_the_same_bytes(kind: str, kernels: Kernels):
    whole, first = learner(kind, kernels), learner(kind, kernels)
    for step in range(30):
        whole.step(sparse_batch(step), step)
        first.step(sparse_batch(step), step)
    second = learner(kind, kernels)
    second.load_state_dict(first.state_dict())
    for step in range(30, 60):
        whole.step(sparse_batch(step), step)
        second.step(sparse_batch(step), step)
    for name, tensor in whole.coder.tensors().items():
        assert torch.equal(tensor, second.coder.tensors()[name]), name


def test_relu_starts_dense_and_goes_sparse_without_a_jump(kernels: Kernels):
    """At first half of all latents are positive; as the penalty thins them out the way changes, the curve does not."""
    expected, _ = sparse_steps(learner("relu", None), STEPS)
    one = learner("relu", kernels)
    ways = []
    losses = []
    for step in range(STEPS):
        one.step(sparse_batch(step), step)
        figures = one.read(step + 1)
        ways.append(figures["kernels"])
        losses.append(figures["loss"])
    assert ways[0] == "dense" and ways[-1] == "sparse"
    assert torch.allclose(torch.tensor(losses, dtype=torch.float64), expected, rtol=1e-3)


def test_switching_back_needs_no_more_than_the_next_step(kernels: Kernels):
    """Rows that wake every latent: the step goes the dense way, with the same moments."""
    ours, reference = learner("jumprelu", kernels), learner("jumprelu", None)
    ways = []
    for step in range(12):
        batch = sparse_batch(step)
        if step == 6:
            rows = {
                site: 30 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
                for site, x in batch.rows.items()
            }
            batch = ActivationBatch(rows, batch.token_ids, batch.document_ids, batch.positions)
        for one in (ours, reference):
            one.step(batch, step)
        ways.append(ours.read(step + 1)["kernels"])
        reference.read(step + 1)
    assert ways[5] == "sparse" and ways[6] == "dense"
    for name, tensor in reference.coder.tensors().items():
        assert torch.allclose(ours.coder.tensors()[name], tensor, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("sparse", [False, True])
@kinds
def test_a_row_that_is_not_a_number_is_reported_and_changes_nothing(kind: str, sparse: bool, kernels: Kernels):
    one = learner(kind, kernels if sparse else None)
    for step in range(5):
        one.step(sparse_batch(step), step)
    one.read(5)
    before = one.coder.tensors()
    batch = sparse_batch(5)
    rows = {site: x.clone() for site, x in batch.rows.items()}
    rows[Site(0, "resid_post")][3, 2] = torch.nan
    one.step(ActivationBatch(rows, batch.token_ids, batch.document_ids, batch.positions), 5)
    after = one.coder.tensors()
    for name in before:
        assert torch.isfinite(after[name]).all(), name
        if name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            assert torch.allclose(before[name], after[name], rtol=1e-6, atol=0), name
    with pytest.raises(ValueError, match="the loss is nan"):
        one.read(6)
