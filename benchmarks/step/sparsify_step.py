"""sparsify's step: its `SparseCoder` with the optimiser and schedule that its `Trainer` makes for `optimizer="adam"`.

`Trainer.fit` cannot be stopped between two steps, so this module does what its loop does with one batch, in the same
order and with sparsify's own functions: unit norm, forward, fired latents, reading the FVU, backward, removal of the
gradient's parallel part, Adam, schedule, counts. It leaves out the copying of rows that are not masked, which favours
sparsify. At B=4096 D=512 F=8192 the two agree within 5 %. `benchmarks.train.vs_sparsify` runs `Trainer.fit` itself.

sparsify has TopK only, and no faster setting on a CPU: its bfloat16 autocast is for CUDA, and its other optimisers are
not Adam. Its `Trainer` uses torch's Adam where bitsandbytes is not installed. Where Triton is installed its decoder is
a Triton kernel, which runs on GPUs only: set SPARSIFY_DISABLE_TRITON=1 to time it on a CPU.

Shape letters: B rows of a batch, D width of a row, F latents.
"""

import contextlib
import io
from typing import Any

import sparsify  # pyright: ignore[reportMissingImports]
import torch
from sparsify import (  # pyright: ignore[reportMissingImports]
    SparseCoder,
    SparseCoderConfig,
    TrainConfig,
    Trainer,
)
from sparsify.utils import decoder_impl, eager_decode  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

from benchmarks.step.case import Case
from benchmarks.step.contestants import Contestant
from benchmarks.step.start import RATE, mean_of
from panscope.types import UserError

VERSION = sparsify.__version__
_STEPS = 1_000_000
"""The length of the schedule; far more steps than are taken."""


def settings(case: Case) -> list[str]:
    """One for TopK, none for the other architectures."""
    return [""] if case.architecture == "topk" else []


def build(case: Case, setting: str, batches: list[Tensor]) -> Contestant:
    """A coder and its optimiser before the first step; raises UserError if sparsify would decode with Triton."""
    del setting
    if decoder_impl is not eager_decode:
        raise UserError("sparsify would decode with a Triton kernel, which needs a GPU: set SPARSIFY_DISABLE_TRITON=1")
    config = TrainConfig(
        SparseCoderConfig(num_latents=case.width, k=case.active),
        batch_size=1,
        optimizer="adam",
        lr=RATE,
        hookpoints=["site"],
        log_to_wandb=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = Trainer(config, range(_STEPS), _OneSite(case.d))
    coder = trainer.saes["site"]
    coder.b_dec.data = mean_of(batches)
    fired = torch.zeros(case.width, dtype=torch.bool)
    return Contestant(lambda x: _step(trainer, coder, fired, x), lambda x: _l0(coder, x), coder.parameters)


class _OneSite(nn.Module):
    """The part of a language model that sparsify's Trainer looks at: one module whose output is D wide."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.site = nn.Identity()
        self.dummy_inputs = {"x": torch.zeros(1, 1, d)}
        self.device = torch.device("cpu")

    @property
    def base_model(self) -> nn.Module:
        """The model without a language-model head: this module itself."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x, by way of the module that sparsify hooks."""
        return self.site(x)


def _step(trainer: Trainer, coder: SparseCoder, fired: Tensor, x: Tensor) -> None:
    """The body of the loop in `Trainer.fit`, for one batch [B, D] of one site."""
    coder.set_decoder_norm_to_unit_norm()
    variance = (x - x.mean(0)).pow(2).sum()
    out = coder(x=x, y=x, dead_mask=None, total_variance=variance)
    fired[out.latent_indices.flatten()] = True
    float(out.fvu.detach())
    (out.fvu + trainer.cfg.auxk_alpha * out.auxk_loss + out.multi_topk_fvu / 8).div(1).backward()
    coder.remove_gradient_parallel_to_decoder_directions()
    for optimizer in trainer.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    for scheduler in trainer.lr_schedulers:
        scheduler.step()
    with torch.no_grad():
        since: Any = trainer.num_tokens_since_fired["site"]
        since += len(x)
        since[fired] = 0
        fired.zero_()


@torch.no_grad()
def _l0(coder: SparseCoder, x: Tensor) -> float:
    return (coder.encode(x).top_acts > 0).sum(dim=1).double().mean().item()
