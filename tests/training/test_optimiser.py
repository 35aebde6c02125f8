"""What some recipes add to Adam: clipping, averaged weights, half precision; and a bias that is not learned.

Shape letters: B rows.
"""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from panscope.coders.normaliser import Normaliser
from panscope.training.checkpoint import Checkpoints
from panscope.training.coder_trainer import CoderTrainer
from panscope.types import ActivationBatch
from tests.support.planted import ARCHITECTURES, STEPS, WIDER, WIDTH, batch, sparse_batch, trainer, wired

AS_THEY_COME = Normaliser(kind="none", scale_in=1, scale_out=1)
every_kind = pytest.mark.parametrize("kind", ARCHITECTURES)
halves = pytest.mark.parametrize("precision", ["bfloat16", "float16"])


def gradients(learner: CoderTrainer) -> dict[str, Tensor]:
    """What the last step gave to Adam: nothing is cleared before the next one."""
    return {name: p.grad.clone() for name, p in learner.coder.named_parameters() if p.grad is not None}


@every_kind
def test_clipping_is_torchs_on_the_whole_gradient_as_one_vector(kind: str):
    """After the part along unit decoder vectors is taken out; a gradient that is short enough stays as it is."""
    plain = trainer(kind)
    plain.step(batch(0), 0)
    whole = torch.nn.Parameter(torch.cat([g.flatten() for g in gradients(plain).values()]))
    norm = whole.detach().norm().item()
    for most in (0.3 * norm, 1.5 * norm):
        learner = trainer(kind, {"clip_norm": most})
        learner.step(batch(0), 0)
        found = torch.cat([g.flatten() for g in gradients(learner).values()])
        whole.grad = whole.detach().clone()
        torch.nn.utils.clip_grad_norm_([whole], most)
        assert torch.allclose(found, whole.grad, rtol=1e-5, atol=1e-9)
        assert found.norm().item() == pytest.approx(min(most, norm), rel=1e-4)


def test_a_clipped_run_ends_elsewhere():
    """Adam hardly feels one constant factor, but the factor changes from step to step."""
    free, clipped = trainer("topk"), trainer("topk", {"clip_norm": 0.05})
    for step in range(STEPS):
        free.step(batch(step), step)
        clipped.step(batch(step), step)
    assert (free.coder.W_enc - clipped.coder.W_enc).abs().max() > 1e-3


@every_kind
def test_the_average_is_one_kept_by_hand(kind: str):
    """a <- d a + (1 - d) w after every step, divided by 1 - d^steps; then unit decoder vectors, positive thresholds."""
    decay, steps = 0.8, 12
    learner, kept = trainer(kind, {"average_decay": decay}), {}
    for step in range(steps):
        learner.step(batch(step), step)
        for name, p in learner.coder.named_parameters():
            kept[name] = decay * kept.get(name, torch.zeros_like(p).double()) + (1 - decay) * p.detach().double()
    finished = learner.finished()
    for name, p in finished.named_parameters():
        expected = kept[name] / (1 - decay**steps)
        if name == "W_dec" and finished.config.decoder_norm == "unit":
            expected = expected / expected.norm(dim=1, keepdim=True)
        assert torch.allclose(p.detach().double(), expected, rtol=1e-5, atol=1e-6), name
    if finished.config.decoder_norm == "unit":
        assert torch.allclose(finished.W_dec.detach().norm(dim=1), torch.ones(WIDTH), rtol=1e-6)
    for name, buffer in learner.coder.named_buffers():
        assert torch.equal(finished.get_buffer(name), buffer)


def test_averaging_leaves_the_learning_alone():
    plain, averaging = trainer("topk"), trainer("topk", {"average_decay": 0.9})
    for step in range(10):
        plain.step(batch(step), step)
        averaging.step(batch(step), step)
        averaging.finished()
    for name, tensor in plain.coder.tensors().items():
        assert torch.equal(tensor, averaging.coder.tensors()[name])
    assert plain.finished() is plain.coder
    assert not torch.equal(averaging.finished().W_enc, averaging.coder.W_enc)


def test_the_average_of_one_step_is_that_step():
    """Without the correction it would be a thousandth of it."""
    learner = trainer("topk", {"average_decay": 0.999})
    learner.step(batch(0), 0)
    assert torch.allclose(learner.finished().W_enc, learner.coder.W_enc, rtol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind != "relu_skip"])
def test_a_bias_that_is_not_learned_stays_0(kind: str):
    learner, with_bias = trainer(kind, encoder_bias=False), trainer(kind)
    for step in range(10):
        learner.step(batch(step), step)
        with_bias.step(batch(step), step)
    assert not learner.coder.b_enc.any()
    assert with_bias.coder.b_enc.any()
    assert "b_enc" not in learner.state_dict()["optimiser"]["adam"]
    assert not torch.equal(learner.coder.W_enc, with_bias.coder.W_enc)


def sparse_trainee(kind: str, precision: str) -> CoderTrainer:
    training = {"precision": precision, "normaliser": "none", "lr_decay_steps": 0}
    chosen: dict[str, Any] = {"d_in": WIDER, "d_out": WIDER, "width": 64, "encoder_init": "transpose"}
    return trainer(kind, training, AS_THEY_COME, wired("sae", 0), steps=100, **chosen)


def curve(learner: CoderTrainer) -> list[float]:
    """The mean loss of each ten of 100 steps."""
    means = []
    for step in range(100):
        learner.step(sparse_batch(step), step)
        if step % 10 == 9:
            means.append(learner.read(step + 1)["loss"])
    return means


def with_scale(learner: CoderTrainer, scale: float) -> CoderTrainer:
    """float16 that starts with another loss scale than 65,536."""
    state = learner.state_dict()
    if learner.config.precision == "float16":
        state["optimiser"]["scaler"]["scale"] = scale
    learner.load_state_dict(state)
    return learner


CURVES: dict[str, list[float]] = {}


@pytest.mark.parametrize(
    ("kind", "precision", "near"),
    [
        # Where nothing is selected, all that is left is rounding: 0.0008 and 0.0006 at most when this was written.
        *((kind, precision, 2e-3) for kind in ("jumprelu", "gated", "relu") for precision in ("bfloat16", "float16")),
        # A row's K-th and next latent change places, and the runs part slowly: 0.019 and 0.007.
        *((kind, "bfloat16", 0.04) for kind in ("topk_auxk", "batchtopk")),
        *((kind, "float16", 0.015) for kind in ("topk_auxk", "batchtopk")),
    ],
)
def test_half_precision_follows_single_precision(kind: str, precision: str, near: float):
    """The losses of 100 steps, ten by ten; with a scale at which no step overflows."""
    if kind not in CURVES:
        CURVES[kind] = curve(sparse_trainee(kind, "float32"))
    expected, found = CURVES[kind], curve(with_scale(sparse_trainee(kind, precision), 512.0))
    assert expected[-1] < 0.7 * expected[0]
    apart = [abs(a - b) / a for a, b in zip(expected, found, strict=True)]
    assert 0 < max(apart) < near


@halves
@every_kind
def test_what_is_learned_and_kept_is_single_precision(kind: str, precision: str):
    learner = trainer(kind, {"precision": precision, "average_decay": 0.9})
    for step in range(4):
        learner.step(batch(step), step)
    state = learner.state_dict()
    moments = [value for each in state["optimiser"]["adam"].values() for value in each.values()]
    kept = [*state["tensors"].values(), *moments, *state["optimiser"]["average"].values()]
    assert {tensor.dtype for tensor in kept} == {torch.float32}
    assert math.isfinite(learner.read(4)["loss"])
    exact = trainer(kind)
    for step in range(4):
        exact.step(batch(step), step)
    assert not torch.equal(exact.coder.W_enc, learner.coder.W_enc)  # the products did lose bits


def large(step: int, size: float = 40) -> ActivationBatch:
    """Rows whose scaled gradients overflow float16 (above 65,504), until the scale has come down to 16."""
    return batch(step, rows=16).map(lambda column: column * size if column.is_floating_point() else column)


def scale_of(learner: CoderTrainer) -> float:
    return learner.state_dict()["optimiser"]["scaler"]["scale"]


def test_a_step_that_overflows_is_left_out_and_the_scale_comes_down():
    learner = trainer("topk", {"precision": "float16", "lr_warmup_steps": 0})
    scales, moved = [65536.0], []
    for step in range(12):
        before = learner.coder.tensors()
        learner.step(large(step, 3), step)
        scales.append(scale_of(learner))
        changes = [(tensor - before[name]).abs().max().item() for name, tensor in learner.coder.tensors().items()]
        moved.append(max(changes) > 1e-6)  # unit norms are rounded again
        assert learner.is_finite()
    halved = [b == a / 2 for a, b in itertools.pairwise(scales)]
    assert halved[0] and not halved[-1]
    assert moved == [not it for it in halved]
    (taken,) = {float(each["step"]) for each in learner.state_dict()["optimiser"]["adam"].values()}
    assert taken == moved.count(True)


def test_a_scaled_gradient_is_clipped_by_its_own_size():
    """Not by 512 times that: a bound half as long again as the gradient leaves it alone, a shorter one is kept to."""
    plain = trainer("topk")
    plain.step(batch(0), 0)
    expected = torch.cat([g.flatten() for g in gradients(plain).values()])
    norm = expected.norm().item()
    for most in (0.3 * norm, 1.5 * norm):
        learner = with_scale(trainer("topk", {"precision": "float16", "clip_norm": most}), 512.0)
        learner.step(batch(0), 0)
        found = torch.cat([g.flatten() for g in gradients(learner).values()])
        kept = min(1.0, most / norm)
        assert torch.allclose(found, expected * kept, rtol=0.02, atol=2e-3 * kept * norm)  # 11 bits


@halves
@pytest.mark.parametrize("cut", [1, 4, 20])
@pytest.mark.parametrize("kind", ["topk_auxk", "matryoshka", "jumprelu_target", "gated", "relu_skip"])
def test_half_precision_goes_on_bit_for_bit(kind: str, precision: str, cut: int, tmp_path: Path):
    """With its scale, in the middle of coming down, and its average."""
    training = {"precision": precision, "average_decay": 0.9, "clip_norm": 5.0}
    whole, resumed = trainer(kind, training), trainer(kind, training)
    for step in range(cut):
        whole.step(large(step), step)
    Checkpoints(tmp_path).save(cut, {"a": whole.state_dict()})
    resumed.step(batch(99), 0)
    resumed.load_state_dict(Checkpoints(tmp_path).load(cut)["a"])
    if precision == "float16":
        assert scale_of(resumed) == scale_of(whole) < 65536
    for step in range(cut, 25):
        whole.step(large(step), step)
        resumed.step(large(step), step)
    for name, tensor in whole.coder.tensors().items():
        assert torch.equal(tensor, resumed.coder.tensors()[name]), name
    for name, tensor in whole.finished().tensors().items():
        assert torch.equal(tensor, resumed.finished().tensors()[name]), name
    assert whole.read(25) == resumed.read(25)
