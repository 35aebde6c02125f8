"""AuxK in training: latents that no row ever chooses come back to life with it, and not without.

The situation is planted: the encoder vectors of 24 of 32 latents start so short that the other eight win on every row,
and no gradient ever reaches the 24, although their pre-activations are above 0 on half of the rows.
"""

from typing import Any

import pytest
import torch

from panscope.coders.normaliser import Normaliser
from panscope.training.coder_trainer import CoderTrainer
from tests.support.planted import WIDER, sparse_batch, trainer, wired

AS_THEY_COME = Normaliser(kind="none", scale_in=1, scale_out=1)
WINDOW, ROWS, WIDTH, ALIVE, STEPS = 256, 64, 32, 8, 300


def starved(architecture: str, auxk: float, *, legacy: bool = False) -> CoderTrainer:
    """K = 2 of 32 latents, of which the same eight win."""
    training = {"dead_window": WINDOW, "lr_warmup_steps": 0, "lr_decay_steps": 0, "learning_rate": 0.003}
    fields: dict[str, Any] = {"d_in": WIDER, "d_out": WIDER, "width": WIDTH, "sparsity": 2, "encoder_init": "transpose"}
    if auxk:
        fields |= {"auxk": 6, "auxk_bias": legacy}
    wiring = wired("sae", 0)
    learner = trainer(architecture, training, AS_THEY_COME, wiring, STEPS, auxk_coefficient=auxk, **fields)
    with torch.no_grad():
        learner.coder.W_enc[ALIVE:] *= 0.01
        learner.coder.b_enc[:ALIVE] = 1.0
    return learner


def dead_shares(learner: CoderTrainer) -> list[float]:
    shares = []
    for step in range(STEPS):
        learner.step(sparse_batch(step, ROWS), step)
        shares.append(learner.clock.dead_fraction())
    return shares


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_dead_latents_come_back_with_it_and_only_with_it(architecture: str):
    without, with_it = starved(architecture, 0.0), starved(architecture, 1 / 32)
    others = without.coder.tensors()["W_enc"][ALIVE:]
    shares = dead_shares(without)
    starved_share = 1 - ALIVE / WIDTH
    assert shares[2] == 0  # three steps of 64 rows are less than the window
    assert shares[3] == shares[-1] == starved_share
    assert torch.equal(without.coder.W_enc[ALIVE:], others)  # nothing ever reached them
    shares = dead_shares(with_it)
    assert shares[3] == starved_share
    assert shares[-1] < 0.4
    assert with_it.read(STEPS)["fvu"] < 0.9 * without.read(STEPS)["fvu"]


def test_nothing_changes_before_a_latent_is_dead():
    """In the first window the auxiliary loss is 0, whatever it counts."""
    without, with_it = starved("topk", 0.0), starved("topk", 100.0)
    for step in range(4):
        without.step(sparse_batch(step, ROWS), step)
        with_it.step(sparse_batch(step, ROWS), step)
        assert torch.equal(without.coder.W_enc, with_it.coder.W_enc)
    assert without.read(4) == with_it.read(4)
    without.step(sparse_batch(4, ROWS), 4)
    with_it.step(sparse_batch(4, ROWS), 4)
    assert not torch.equal(without.coder.W_enc, with_it.coder.W_enc)


def test_the_legacy_form_learns_too_and_differs():
    plain, legacy = starved("topk", 1 / 32), starved("topk", 1 / 32, legacy=True)
    assert dead_shares(legacy)[-1] < 0.4
    dead_shares(plain)
    assert not torch.equal(plain.coder.W_dec, legacy.coder.W_dec)
