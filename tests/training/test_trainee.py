"""One coder in training, against an Adam written here again and against brute force.

Shape letters: B rows, D input width, F latents.
"""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from panscope.coders.batchtopk import BatchTopKConfig
from panscope.coders.normaliser import Normaliser
from panscope.ops.base import Rows
from panscope.ops.dense import DenseOps
from panscope.training.checkpoint import Checkpoints
from panscope.training.coder_trainer import CoderTrainer
from panscope.training.meters import DeadClock
from panscope.types import ActivationBatch, NonFiniteError
from tests.support.planted import ARCHITECTURES, PREDICTS, READS, SCALES, STEPS, TRAINING, WIDTH, batch, trainer

every_architecture = pytest.mark.parametrize("kind", ARCHITECTURES)


class HandWrittenAdam:
    """Kingma and Ba, Algorithm 1, in float64, a parameter at a time."""

    def __init__(self, beta1: float, beta2: float, eps: float) -> None:
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.m: dict[str, Tensor] = {}
        self.v: dict[str, Tensor] = {}
        self.t = 0

    def step(self, weights: dict[str, Tensor], gradients: dict[str, Tensor], rate: float) -> None:
        self.t += 1
        for name, g in gradients.items():
            self.m[name] = self.beta1 * self.m.get(name, torch.zeros_like(g)) + (1 - self.beta1) * g
            self.v[name] = self.beta2 * self.v.get(name, torch.zeros_like(g)) + (1 - self.beta2) * g * g
            m_hat = self.m[name] / (1 - self.beta1**self.t)
            v_hat = self.v[name] / (1 - self.beta2**self.t)
            weights[name] -= rate * m_hat / (v_hat.sqrt() + self.eps)


def rate_of(step: int) -> float:
    """The schedule of `planted.TRAINING`, by hand: 4 steps up from 0, 10 down to 0 at the end of 40."""
    return 0.01 * min(1.0, step / 4, (STEPS - step) / 10)


class HandWrittenClock:
    """Rows since each latent was last active, and a running threshold where a batch has a least activation."""

    def __init__(self) -> None:
        self.silent = [0] * WIDTH
        self.threshold = torch.zeros((), dtype=torch.float64)

    def dead(self) -> Tensor:
        return torch.tensor([rows >= TRAINING["dead_window"] for rows in self.silent])

    def see(self, codes: Tensor, least: Tensor | None, window: int) -> None:
        for i in range(WIDTH):
            self.silent[i] = 0 if bool((codes[:, i] > 0).any()) else self.silent[i] + len(codes)
        if least is not None:
            first = float(self.threshold) == 0
            self.threshold = least if first else (1 - 1 / window) * self.threshold + least / window


def gradients_of(
    learner: CoderTrainer, weights: dict[str, Tensor], rows: ActivationBatch, clock: HandWrittenClock
) -> dict[str, Tensor]:
    """The loss's gradients at `weights`, by autograd through a copy of the coder in float64."""
    coder = copy.deepcopy(learner.coder).double()
    coder.load_tensors({name: w.clone() for name, w in weights.items()})
    x = rows.rows[READS].double() * SCALES.scale_in
    y = rows.rows[PREDICTS].double() * SCALES.scale_out
    seen = coder.objective(Rows.mean(x, y, clock.dead()), coder.config.sparsity, DenseOps())
    seen.loss.backward()
    window = coder.config.threshold_window if isinstance(coder.config, BatchTopKConfig) else 1
    clock.see(seen.latents.dense().detach(), seen.least, window)
    return {name: p.grad for name, p in coder.named_parameters() if p.grad is not None}


def by_hand(learner: CoderTrainer, steps: int, *, project: bool) -> dict[str, Tensor]:
    """The weights after `steps` steps: scale, differentiate, project, Adam, unit norm."""
    weights = {name: w.double() for name, w in learner.coder.tensors().items()}
    beta1, beta2 = TRAINING["adam_betas"]
    adam, clock = HandWrittenAdam(beta1, beta2, TRAINING["adam_eps"]), HandWrittenClock()
    for step in range(steps):
        gradients = gradients_of(learner, weights, batch(step), clock)
        if project and learner.coder.config.decoder_norm == "unit":
            for i in range(WIDTH):
                direction = weights["W_dec"][i] / weights["W_dec"][i].norm()
                gradients["W_dec"][i] -= torch.dot(gradients["W_dec"][i], direction) * direction
        adam.step(weights, gradients, rate_of(step))
        if learner.coder.config.decoder_norm == "unit":
            for i in range(WIDTH):
                weights["W_dec"][i] /= weights["W_dec"][i].norm()
        if learner.coder.config.architecture in ("batchtopk", "matryoshka"):
            weights["threshold"] = clock.threshold
    return weights


@every_architecture
def test_steps_are_those_of_a_hand_written_adam(kind: str):
    learner = trainer(kind)
    expected = by_hand(learner, 8, project=True)
    for step in range(8):
        learner.step(batch(step), step)
    for name, weight in learner.coder.tensors().items():
        # fp32 against fp64 over 8 steps of at most 0.01; Adam divides by the size of small gradients.
        assert torch.allclose(weight.double(), expected[name], rtol=0, atol=2e-5), name


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_the_gradient_is_projected_before_adam(kind: str):
    """The same steps without the projection end elsewhere, so the test above would notice."""
    learner = trainer(kind)
    without = by_hand(learner, 8, project=False)
    for step in range(8):
        learner.step(batch(step), step)
    # A hundred times the tolerance above.
    assert (learner.coder.W_dec.detach().double() - without["W_dec"]).abs().max() > 2e-3
    assert torch.allclose(learner.coder.W_dec.detach().norm(dim=1), torch.ones(WIDTH), rtol=1e-6)


@every_architecture
def test_input_and_target_have_their_own_scale(kind: str):
    """A learner with scales equals one without, given rows that were scaled beforehand."""
    ones = Normaliser(kind="none", scale_in=1, scale_out=1)
    scaled, plain = trainer(kind), trainer(kind, scales=ones)
    for step in range(3):
        rows = batch(step)
        scaled.step(rows, step)
        sizes = {READS: SCALES.scale_in, PREDICTS: SCALES.scale_out}
        before = {site: x * sizes[site] for site, x in rows.rows.items()}
        plain.step(ActivationBatch(before, rows.token_ids, rows.document_ids, rows.positions), step)
    for a, b in zip(scaled.coder.parameters(), plain.coder.parameters(), strict=True):
        assert torch.equal(a, b)


def test_rows_in_half_precision_are_learned_in_single():
    learner = trainer("topk")
    rows = batch(0)
    halves = {site: x.bfloat16() for site, x in rows.rows.items()}
    learner.step(ActivationBatch(halves, rows.token_ids, rows.document_ids, rows.positions), 0)
    assert {p.dtype for p in learner.coder.parameters()} == {torch.float32}
    assert math.isfinite(learner.read(1)["loss"])


def test_the_sparsity_now_in_force_is_the_schedules():
    """K goes 12, 9, 6, 3 over three steps: that many latents are active where enough are positive."""
    learner = trainer("topk", {"sparsity_from": 12, "sparsity_warmup_steps": 3, "learning_rate": 1e-9})
    seen = []
    for step in range(5):
        x = batch(step).rows[READS] * SCALES.scale_in
        positive = (learner.coder.preactivations(x) > 0).sum(dim=1)
        learner.step(batch(step), step)
        k = (12, 9, 6, 3, 3)[step]
        seen.append((learner.read(step + 1)["l0"], positive.clamp(max=k).double().mean().item()))
    for l0, expected in seen:
        assert l0 == pytest.approx(expected, rel=1e-12)


@every_architecture
def test_the_meter_is_brute_force_in_float64(kind: str):
    learner = trainer(kind)
    losses, y_all, y_hat_all, active = [], [], [], []
    for step in range(5):
        rows = batch(step, rows=7 + step)
        x = rows.rows[READS] * SCALES.scale_in
        y = rows.rows[PREDICTS] * SCALES.scale_out
        seen = learner.coder.objective(Rows.mean(x, y, learner.clock.dead()), learner.coder.config.sparsity, DenseOps())
        losses.append(seen.loss.item())
        y_all.append(y.double())
        y_hat_all.append(seen.y_hat.detach().double())
        active += (seen.latents.dense().detach() > 0).sum(dim=1).tolist()
        learner.step(rows, step)
    y, y_hat = torch.cat(y_all), torch.cat(y_hat_all)
    fvu = (y_hat - y).square().sum() / (y - y.mean(dim=0)).square().sum()
    figures = learner.read(5)
    assert figures["fvu"] == pytest.approx(fvu.item(), rel=1e-6)  # the error is squared in fp32
    assert figures["loss"] == pytest.approx(sum(losses) / 5, rel=1e-12)
    assert figures["l0"] == pytest.approx(sum(active) / len(active), rel=1e-12)


def test_a_reading_starts_the_figures_again():
    learner, other = trainer("topk"), trainer("topk")
    for step in range(4):
        learner.step(batch(step), step)
        other.step(batch(step), step)
        if step == 1:
            learner.read(2)
    last = learner.read(4)
    assert last["fvu"] != other.read(4)["fvu"]
    again = trainer("topk")
    for step in range(4):
        again.step(batch(step), step)
        if step == 1:
            again.meter.read()
    assert again.read(4) == last


def test_what_is_logged_names_the_coder_and_what_is_in_force():
    learner = trainer("topk", {"sparsity_from": 12, "sparsity_warmup_steps": 3})
    for step in (0, 1):
        learner.step(batch(step), step)
    figures = learner.read(2)
    assert figures["coder"] == "topk"
    assert figures["dead_window"] == 30
    assert figures["learning_rate"] == pytest.approx(0.01 / 4)
    assert figures["sparsity"] == pytest.approx(9)
    assert set(figures) >= {"loss", "fvu", "l0", "dead_fraction"}


def test_the_dead_clock_is_brute_force():
    """Against the whole history of firings, batches of unequal size among them."""
    generator = torch.Generator().manual_seed(5)
    clock = DeadClock(8, 20, torch.device("cpu"))
    rates = torch.tensor([0.0, 0.01, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0])
    history: list[list[bool]] = []
    for number in range(60):
        rows = 1 + number % 5
        active = torch.rand(rows, 8, generator=generator) < rates
        clock.update(active.sum(dim=0), rows)
        history += [active.any(dim=0).tolist()] * rows  # a batch that fired counts as a whole
        dead = 0
        for latent in range(8):
            since = 0
            while since < len(history) and not history[-1 - since][latent]:
                since += 1
            dead += since >= 20
        assert clock.dead_fraction() == pytest.approx(dead / 8)
    assert 0 < clock.dead_fraction() < 1


@every_architecture
def test_no_number_any_more_is_one_sentence(kind: str):
    learner = trainer(kind)
    learner.step(batch(0), 0)
    with torch.no_grad():
        learner.coder.b_dec[0] = math.nan
    learner.step(batch(1), 1)
    with pytest.raises(
        NonFiniteError, match=rf"coder {kind}: the loss is nan at step 2; start again with a learning_rate below 0.01"
    ):
        learner.read(2)
    assert not learner.is_finite()
    assert trainer(kind).is_finite()


def everything(learner: CoderTrainer) -> dict[str, Any]:
    """All that a state holds, as flat names."""
    flat: dict[str, Any] = {}

    def walk(value: Any, place: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{place}/{key}")
        else:
            flat[place] = value.clone() if isinstance(value, Tensor) else value

    walk(learner.state_dict(), "")
    return flat


def assert_same(a: CoderTrainer, b: CoderTrainer) -> None:
    left, right = everything(a), everything(b)
    assert left.keys() == right.keys()
    for place, value in left.items():
        same = torch.equal(value, right[place]) if isinstance(value, Tensor) else value == right[place]
        assert same, place


@every_architecture
@pytest.mark.parametrize("cut", [1, 7, 31])
def test_a_learner_taken_up_from_disk_goes_on_bit_for_bit(kind: str, cut: int, tmp_path: Path):
    whole = trainer(kind)
    for step in range(cut):
        whole.step(batch(step), step)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(cut, {"a": whole.state_dict()})

    # Other weights and no normaliser: all of it must come from the state.
    resumed = trainer(kind, scales=Normaliser(kind="none", scale_in=1, scale_out=1))
    resumed.step(batch(99), 0)
    resumed.load_state_dict(checkpoints.load(cut)["a"])
    assert_same(whole, resumed)
    for step in range(cut, STEPS):
        whole.step(batch(step), step)
        resumed.step(batch(step), step)
    assert_same(whole, resumed)
    assert whole.read(STEPS) == resumed.read(STEPS)


def test_a_state_shares_no_memory_with_the_learner_that_took_it():
    """Two learners go on from one state in memory, and do not disturb each other."""
    first = trainer("relu")
    first.step(batch(0), 0)
    state = copy.deepcopy(first.state_dict())
    second, third = trainer("relu"), trainer("relu")
    second.load_state_dict(state)
    third.load_state_dict(state)
    second.step(batch(1), 1)
    third.step(batch(1), 1)
    assert_same(second, third)


def test_a_latent_without_a_gradient_is_left_alone():
    """A TopK latent that is never chosen keeps its weights, but for the rounding of its norm."""
    learner = trainer("topk")
    with torch.no_grad():
        learner.coder.b_enc[4] = -100.0
    before = {name: tensor[4].clone() for name, tensor in learner.coder.tensors().items() if name != "b_dec"}
    for step in range(5):
        learner.step(batch(step), step)
    after = learner.coder.tensors()
    assert torch.equal(after["W_enc"][4], before["W_enc"])
    assert torch.equal(after["b_enc"][4], before["b_enc"])
    assert torch.allclose(after["W_dec"][4], before["W_dec"], rtol=1e-6)
