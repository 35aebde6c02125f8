"""How the learning rate and the sparsity change over a run, as pure functions of the step.

Learning rate: a rise over the first steps (linear, or half a cosine as in Gemma Scope), constant, then a linear fall at
the end (Llama Scope). Sparsity: linear from a starting value over the first steps; that is Gemma Scope's lambda warm-up
(from 0) and Llama Scope's K-annealing (from D down to K) alike.
"""

import math
from typing import Annotated, Literal

from pydantic import Field

from panscope.coders.normaliser import Kind
from panscope.config import Config
from panscope.training.losses import Loss

Share = Annotated[float, Field(ge=0, lt=1)]


Precision = Literal["float32", "tf32", "bfloat16", "float16"]


class TrainingConfig(Config):
    """How one coder is trained. Steps are steps of this run: a plan has already fitted them to its length."""

    normaliser: Kind
    """Size the activations are brought to; `coders/normaliser.py` says what each kind is."""
    normalise_target_by: Literal["target", "input"] = "target"
    """Whose size a transcoder's target is divided by: its own (Llama Scope) or the input's (Gemma Scope appendix B)."""
    loss: Loss = "squared_error"
    """What is minimised of the reconstruction; `training/losses.py` has the formulas."""
    loss_space: Literal["normalised", "raw"] = "normalised"
    """Where the error is measured: as the coder sees the rows, or after undoing a normaliser that differs by row."""
    b_dec_init: Literal["zero", "geometric_median", "geometric_median_raw"] = "zero"
    """b_dec at the start: 0, or the geometric median of the first batch's targets in the space the coder works in (Gao
    et al.; Multi-Layer SAE). Legacy, `_raw`: of the rows before a per-row normaliser, as the Multi-Layer SAE's code."""
    learning_rate: float = Field(gt=0)
    """Adam's rate between warm-up and decay."""
    adam_betas: tuple[Share, Share] = (0.9, 0.999)
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
    clip_norm: float | None = Field(default=None, gt=0)
    """Scale the coder's whole gradient down to this norm where it is longer; left out, never."""
    average_decay: float | None = Field(default=None, gt=0, lt=1)
    """Save an exponential average of the weights, with this decay a step; left out, the last weights."""
    precision: Precision = "float32"
    """Of the products inside a step; weights, moments and losses stay float32. tf32 needs an NVIDIA GPU, bfloat16 and
    float16 are torch.autocast's, and float16 scales the loss so that small gradients survive."""
    dead_window: int = Field(default=10_000_000, gt=0)
    """A latent is called dead when it was not active on this many tokens in a row, at any of its sites."""
    active_above: float = Field(default=0.0, ge=0)
    """For the dead window, active means a value above this (Gao et al. and the Multi-Layer SAE: 1e-3)."""


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
