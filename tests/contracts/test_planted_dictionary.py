"""Every architecture finds the directions its rows were made of, trained as a run trains it.

Rows are sums of 3 of 32 random directions of a 16-dimensional space, with sizes between 0.5 and 1.5. The coder has 48
latents and a unit decoder. The budget is 800 steps of 512 rows of Adam at 0.01, the last 30 % falling to 0.

Shape letters: B rows, D width of a row, N planted directions, F latents.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from panscope import coders
from panscope.coders.base import Coder
from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import Wiring
from panscope.kernels.backend import Kernels
from panscope.kernels.cpu import CpuKernels
from panscope.training import sparse_dense_switch as way
from panscope.training.coder_trainer import CoderTrainer, StepBackend
from panscope.training.schedule import TrainingConfig
from panscope.types import ActivationBatch, Site

D, DIRECTIONS, ACTIVE, LATENTS = 16, 32, 3, 48
STEPS, ROWS, RATE = 800, 512, 0.01
SITE = Site(0, "resid_post")
SETTINGS: dict[str, dict[str, Any]] = {
    "relu": {"sparsity": 0.5},
    "topk": {"sparsity": ACTIVE},
    "topk_by_norm": {"sparsity": ACTIVE, "selection": "decoder_norm", "decoder_norm": "free"},
    "topk_all": {"sparsity": ACTIVE, "auxk_coefficient": 1 / 32, "multi_coefficient": 1 / 8},
    "batchtopk": {"sparsity": ACTIVE, "threshold_window": 100},
    "matryoshka": {"sparsity": ACTIVE, "threshold_window": 100, "prefixes": (0.5, 1.0)},
    "jumprelu": {"sparsity": 0.2, "bandwidth": 0.5, "threshold_init": 0.1},
    "jumprelu_target": {"sparsity": 10.0, "bandwidth": 0.5, "threshold_init": 0.1, "target_l0": ACTIVE},
    "gated": {"sparsity": 1.0},
}
LEAST = {"matryoshka": 0.85}
"""Asked of the mean cosine where it is not 0.9: half of the latents cannot name 32 directions, and are asked to."""


def rows_of(directions: Tensor, generator: torch.Generator, count: int = ROWS) -> Tensor:
    """[B, D]."""
    chosen = torch.rand(count, DIRECTIONS, generator=generator).topk(ACTIVE, dim=1).indices
    size = torch.rand(count, ACTIVE, generator=generator) + 0.5
    return torch.zeros(count, DIRECTIONS).scatter(1, chosen, size) @ directions


def batches(directions: Tensor, generator: torch.Generator) -> Iterator[ActivationBatch]:
    index = torch.arange(ROWS)
    for _ in range(STEPS):
        yield ActivationBatch({SITE: rows_of(directions, generator)}, index, index, index)


def schedule(kind: str) -> TrainingConfig:
    """K from the start; a penalty grows over the first 30 %."""
    part = round(0.3 * STEPS)
    fields = {"normaliser": "none", "learning_rate": RATE, "lr_decay_steps": part, "dead_window": 10 * ROWS}
    if "topk" not in kind and kind != "matryoshka":
        fields["sparsity_warmup_steps"] = part
    return TrainingConfig.read(fields, "test")


def trained(
    kind: str, seed: int = 0, *, kernels: Kernels | None = None, **changes: Any
) -> tuple[Coder, Tensor, torch.Generator]:
    """The coder, the planted directions [N, D], and the generator for fresh rows."""
    generator = torch.Generator().manual_seed(seed)
    directions = nn.functional.normalize(torch.randn(DIRECTIONS, D, generator=generator), dim=1)
    fields = {"d_in": D, "d_out": D, "width": LATENTS} | SETTINGS[kind] | changes
    coder = coders.build(coders.config_type(kind.partition("_")[0]).read(fields, "test")).initialise(generator)
    assert mean_max_cosine(coder, directions) < 0.75
    wiring = Wiring(wiring="sae", reads=(SITE,), predicts=(SITE,))
    plain = Normaliser(kind="none", scale_in=1, scale_out=1)
    trainer = CoderTrainer(kind, coder, wiring, plain, schedule(kind), steps=STEPS, backend=StepBackend(kernels))
    for step, batch in enumerate(batches(directions, generator)):
        trainer.step(batch, step)
    assert kernels is None or trainer.read(STEPS)["kernels"] == "sparse"
    return trainer.finished(), directions, generator


def mean_max_cosine(coder: Coder, directions: Tensor) -> float:
    """For each direction the nearest decoder vector's cosine, averaged."""
    cosines = directions @ nn.functional.normalize(coder.W_dec.detach(), dim=1).T
    return cosines.max(dim=1).values.mean().item()


def test_every_architecture_is_asked() -> None:
    assert {kind.partition("_")[0] for kind in SETTINGS} == coders.ARCHITECTURES.keys()


@pytest.mark.parametrize("kernels", [None, CpuKernels()], ids=["reference", "sparse"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_the_planted_directions_are_found(kind: str, kernels: Kernels | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sparse way also where a third of 48 latents is touched, as it is here in JumpReLU's window."""
    monkeypatch.setattr(way, "MAX_ACTIVE_FRACTION", 1.0)
    monkeypatch.setattr(way, "_BACK", 1.0)
    coder, directions, generator = trained(kind, kernels=kernels)
    # The least over seeds 0 to 5: ReLU 0.96, TopK 0.98, by norm 0.97, with AuxK and Multi-TopK 0.96, BatchTopK 0.93,
    # Matryoshka 0.86, JumpReLU 0.96, with a target 0.94, Gated 0.96.
    assert mean_max_cosine(coder, directions) > LEAST.get(kind, 0.9)
    if kind == "jumprelu_target" or "topk" in kind or kind == "matryoshka":
        l0 = coder.encode(rows_of(directions, generator, 4000)).l0().double().mean().item()
        assert l0 == pytest.approx(ACTIVE, rel=0.1)


def test_the_sparsity_of_jumprelu_follows_its_target() -> None:
    """Twice the planted number, and half: not only where the data would have it."""
    for target in (1.5, 6.0):
        coder, directions, generator = trained("jumprelu_target", target_l0=target)
        l0 = coder.encode(rows_of(directions, generator, 4000)).l0().double().mean().item()
        assert l0 == pytest.approx(target, rel=0.1)
