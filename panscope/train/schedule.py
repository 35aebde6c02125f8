"""How the learning rate and the sparsity change over a run, as pure functions of the step.

Learning rate: a rise over the first steps (linear, or half a cosine as in Gemma Scope), constant, then a linear fall at
the end (Llama Scope). Sparsity: linear from a starting value over the first steps; that is Gemma Scope's lambda warm-up
(from 0) and Llama Scope's K-annealing (from D down to K) alike.
"""

import math
from typing import Literal

from pydantic import Field

from panscope.coders.normaliser import Kind
from panscope.config import Config


class TrainingConfig(Config):
    """How one coder is trained. Steps are steps of this run: a plan has already fitted them to its length."""

    normaliser: Kind
    """Size the activations are brought to: E|x|^2 = 1 (unit_rms), E|x| = sqrt(D) (sqrt_d), or none."""
    normalise_target_by: Literal["target", "input"] = "target"
    """Whose size a transcoder's target is divided by: its own (Llama Scope) or the input's (Gemma Scope appendix B)."""
    learning_rate: float = Field(gt=0)
    """Adam's rate between warm-up and decay."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moments."""
    adam_eps: float = Field(default=1e-8, gt=0)
    """Adam's epsilon."""
    lr_warmup: Literal["linear", "cosine"] = "linear"
    """Shape of the rise."""
    lr_warmup_from: float = Field(default=0.0, ge=0, le=1)
    """Share of the rate at the first step."""
    lr_warmup_steps: int = Field(default=0, ge=0)
    """Length of the rise."""
    lr_decay_steps: int = Field(default=0, ge=0)
    """Length of the linear fall at the end."""
    lr_end: float = Field(default=0.0, ge=0, le=1)
    """Share of the rate after the last step."""
    sparsity_from: float = Field(default=0.0, ge=0)
    """Sparsity (K or coefficient) at the first step."""
    sparsity_warmup_steps: int = Field(default=0, ge=0)
    """Steps until the coder's own sparsity is reached."""
    dead_window: int = Field(default=10_000_000, gt=0)
    """A latent is called dead when it was not active on this many rows in a row."""


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """Adam's rate at `step` (from 0) of a run of `steps`."""
    rise = 1.0
    if step < config.lr_warmup_steps:
        share = step / config.lr_warmup_steps
        if config.lr_warmup == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        rise = config.lr_warmup_from + (1 - config.lr_warmup_from) * share
    fall = 1.0
    left = steps - step
    if left < config.lr_decay_steps:
        fall = config.lr_end + (1 - config.lr_end) * left / config.lr_decay_steps
    return config.learning_rate * rise * fall


def sparsity(config: TrainingConfig, final: float, step: int) -> float:
    """K or the penalty's coefficient at `step`; `final` once the warm-up is over."""
    if step >= config.sparsity_warmup_steps:
        return final
    return config.sparsity_from + (final - config.sparsity_from) * step / config.sparsity_warmup_steps
