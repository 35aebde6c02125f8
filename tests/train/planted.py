"""Trainees and batches for the tests of training: small, seeded, without a language model.

Shape letters: B rows, D input width, E output width.
"""

from collections.abc import Iterator
from typing import Any

import torch

from panscope import coders
from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import Wiring
from panscope.train.schedule import TrainingConfig
from panscope.train.trainee import Trainee
from panscope.types import ActivationBatch, Site

D, WIDTH, STEPS = 6, 12, 40
READS, PREDICTS = Site(0, "mlp_in"), Site(0, "mlp_out")
SCALES = Normaliser(kind="unit_rms", scale_in=0.5, scale_out=3.0)
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "topk": {"sparsity": 3},
    "topk_by_norm": {"sparsity": 3, "selection": "decoder_norm", "decoder_norm": "free"},
    "jumprelu": {"sparsity": 0.05, "bandwidth": 0.5, "threshold_init": 0.1},
    "relu": {"sparsity": 0.05, "decoder_norm": "free"},
}
TRAINING: dict[str, Any] = {
    "normaliser": "unit_rms",
    "learning_rate": 0.01,
    "adam_betas": (0.8, 0.99),
    "adam_eps": 1e-6,
    "lr_warmup_steps": 4,
    "lr_decay_steps": 10,
    "dead_window": 30,
}


def batch(number: int, rows: int = 16) -> ActivationBatch:
    """[B, D] at both sites, a function of its number."""
    generator = torch.Generator().manual_seed(number)
    x, y = (torch.randn(rows, D, generator=generator) for _ in range(2))
    index = torch.arange(rows)
    return ActivationBatch({READS: x, PREDICTS: y}, index, index, index)


def batches(first: int = 0) -> Iterator[ActivationBatch]:
    while True:
        yield batch(first)
        first += 1


def trainee(kind: str, training: dict[str, Any] | None = None, scales: Normaliser = SCALES, **fields: Any) -> Trainee:
    """A transcoder in training."""
    fixed = {"d_in": D, "d_out": D, "width": WIDTH, "encoder_init": "own"} | ARCHITECTURES[kind] | fields
    config = coders.config_type(kind.partition("_")[0]).read(fixed, "test")
    coder = coders.build(config).initialise(torch.Generator().manual_seed(3))
    wiring = Wiring(wiring="transcoder", reads=READS, predicts=PREDICTS)
    schedule = TrainingConfig.read(TRAINING | (training or {}), "test")
    return Trainee(kind, coder, wiring, scales, schedule, steps=STEPS)
