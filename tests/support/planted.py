"""Trainees and batches for the tests of training: small, seeded, without a language model.

Shape letters: B rows, D input width, E output width.
"""

from collections.abc import Iterator
from typing import Any

import torch

from panscope import coders
from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import Wiring
from panscope.training.coder_trainer import CoderTrainer
from panscope.training.schedule import TrainingConfig
from panscope.types import ActivationBatch, Site

D, WIDTH, STEPS = 6, 12, 40
READS, PREDICTS = Site(0, "mlp_in"), Site(0, "mlp_out")
SCALES = Normaliser(kind="unit_rms", scale_in=0.5, scale_out=3.0)
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "topk": {"sparsity": 3},
    "topk_by_norm": {"sparsity": 3, "selection": "decoder_norm", "decoder_norm": "free"},
    "topk_auxk": {"sparsity": 2, "auxk_coefficient": 0.5, "auxk": 3},
    "topk_multi": {"sparsity": 2, "multi_coefficient": 0.125},
    "batchtopk": {"sparsity": 3, "threshold_window": 5},
    "matryoshka": {"sparsity": 3, "prefixes": (0.25, 0.5, 1.0), "threshold_window": 5},
    "jumprelu": {"sparsity": 0.05, "bandwidth": 0.5, "threshold_init": 0.1},
    "jumprelu_target": {"sparsity": 0.5, "bandwidth": 0.5, "threshold_init": 0.1, "target_l0": 3, "target_of": "row"},
    "gated": {"sparsity": 0.05},
    "relu": {"sparsity": 0.05, "decoder_norm": "free"},
    "relu_skip": {"sparsity": 0.05, "skip": True, "encoder_bias": False},
}
"""A kind is an architecture, and after an underscore what is switched on."""
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


WIDER, DIRECTIONS = 16, 48
_PLANTED = torch.nn.functional.normalize(torch.randn(DIRECTIONS, WIDER, generator=torch.Generator().manual_seed(0)))


def sparse_batch(number: int, rows: int = 128) -> ActivationBatch:
    """[B, 16] at L00.resid_post: sums of three of 48 planted directions."""
    g = torch.Generator().manual_seed(number)
    chosen = torch.rand(rows, DIRECTIONS, generator=g).topk(3, dim=1).indices
    x = (_PLANTED[chosen] * (1 + torch.rand(rows, 3, 1, generator=g))).sum(dim=1)
    index = torch.arange(rows)
    return ActivationBatch({Site(0, "resid_post"): x}, index, index, index)


def wired(wiring: str, *layers: int) -> Wiring:
    """A transcoder, or a wiring of what the given layers' residual stream holds."""
    if wiring == "transcoder":
        return Wiring(wiring="transcoder", reads=(READS,), predicts=(PREDICTS,))
    sites = [Site(layer, "resid_post") for layer in layers]
    return Wiring.read({"wiring": wiring, "reads": sites, "predicts": sites}, "test")


TRANSCODER = wired("transcoder")


def trainer(
    kind: str,
    training: dict[str, Any] | None = None,
    scales: Normaliser = SCALES,
    wiring: Wiring = TRANSCODER,
    steps: int = STEPS,
    **fields: Any,
) -> CoderTrainer:
    """A coder in training, a transcoder unless another wiring is given."""
    fixed = {"d_in": D, "d_out": D, "width": WIDTH, "encoder_init": "own"} | ARCHITECTURES[kind] | fields
    config = coders.config_type(kind.partition("_")[0]).read(fixed, "test")
    coder = coders.build(config).initialise(torch.Generator().manual_seed(3))
    schedule = TrainingConfig.read(TRAINING | (training or {}), "test")
    return CoderTrainer(kind, coder, wiring, scales, schedule, steps=steps)
