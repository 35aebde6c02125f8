"""SAELens' coders in `benchmarks.quality.vs_saelens`: its own SAEs, trained by its own trainer on given rows.

Its defaults (6.54: Adam at a constant 3e-4, no normaliser) are meant for runs of 10^8 rows and more, so the settings
that its guide recommends are tried too: activations scaled to E|x| = sqrt(D), a learning rate that decays to 0 over the
last fifth, an L1 penalty that rises over the first twentieth. The caller chooses the learning rate, from a grid.

Shape letters: N rows to train on, M rows to measure on, B rows a step, D width of a site, F latents.
"""

import contextlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sae_lens  # pyright: ignore[reportMissingImports]
import torch
from sae_lens.config import SAETrainerConfig  # pyright: ignore[reportMissingImports]
from sae_lens.registry import get_sae_training_class  # pyright: ignore[reportMissingImports]
from sae_lens.saes.sae import TrainingSAE  # pyright: ignore[reportMissingImports]
from sae_lens.training.sae_trainer import SAETrainer  # pyright: ignore[reportMissingImports]
from torch import Tensor

from benchmarks.quality.measure import Quality, measure
from benchmarks.quality.rows import Budget, Rows

VERSION = sae_lens.__version__

Fields = Callable[[float, int], dict[str, Any]]
"""Sparsity and steps -> the fields of an SAE's configuration that differ from SAELens' defaults."""


@dataclass(frozen=True)
class Recipe:
    """One way to train one architecture."""

    architecture: str
    fields: Fields
    decays: bool = True
    """Whether the learning rate decays to 0 over the last fifth of the steps."""


_SCALED = {"normalize_activations": "expected_average_only_in"}
"""E|x| = sqrt(D), folded into the weights after training."""

RECIPES = {
    "topk-default": Recipe("topk", lambda k, _: {"k": int(k)}, decays=False),
    "topk": Recipe("topk", lambda k, _: _SCALED | {"k": int(k)}),
    "jumprelu-default": Recipe("jumprelu", lambda price, _: {"l0_coefficient": price}, decays=False),
    "jumprelu-step": Recipe("jumprelu", lambda price, _: _SCALED | {"l0_coefficient": price}),
    "gated-default": Recipe("gated", lambda price, _: {"l1_coefficient": price}, decays=False),
    "gated": Recipe("gated", lambda price, steps: _SCALED | {"l1_coefficient": price, "l1_warm_up_steps": steps // 20}),
}
"""`-default` has SAELens' default settings; the others those that its guide and tutorials recommend."""


def train(recipe: str, rows: Rows, *, sparsity: float, learning_rate: float, budget: Budget) -> tuple[Quality, float]:
    """Train one SAE on the first `steps` batches; returns its quality on held-out rows and the seconds of training.

    `sparsity` is K of TopK, else the coefficient of the penalty.
    """
    torch.manual_seed(budget.seed)
    chosen = RECIPES[recipe]
    sae = _build(chosen, rows.training.shape[1], sparsity, budget)
    start = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars cannot be switched off
        trainer = SAETrainer(_schedule(chosen, learning_rate, budget), sae, rows.batches(budget))
        if sae.cfg.normalize_activations != "none":  # otherwise fit() would take these rows from the training rows
            trainer.activation_scaler.estimate_scaling_factor(sae.cfg.d_in, rows.batches(budget), budget.steps)
        trainer.fit()
    seconds = time.perf_counter() - start
    return measure(lambda x: _code_and_reconstruction(sae, x), rows.held_out), seconds


def _build(recipe: Recipe, d_in: int, sparsity: float, budget: Budget) -> TrainingSAE[Any]:
    sae, config = get_sae_training_class(recipe.architecture)
    return sae(config(d_in=d_in, d_sae=budget.width, **recipe.fields(sparsity, budget.steps)))


def _schedule(recipe: Recipe, learning_rate: float, budget: Budget) -> SAETrainerConfig:
    return SAETrainerConfig(
        total_training_samples=budget.steps * budget.batch,
        train_batch_size_samples=budget.batch,
        lr=learning_rate,
        lr_end=learning_rate / 10,  # as its own runner sets it; not used by a constant rate
        lr_decay_steps=budget.steps // 5 if recipe.decays else 0,
    )


def _code_and_reconstruction(sae: TrainingSAE[Any], x: Tensor) -> tuple[Tensor, Tensor]:
    code = sae.encode(x)
    return code, sae.decode(code)
