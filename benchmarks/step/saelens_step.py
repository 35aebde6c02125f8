"""SAELens' step: `SAETrainer.step`, which its own `fit` calls for every batch.

Its settings are those that a user can choose: a compiled forward pass (`compile_sae`), bfloat16 autocast, both, and
sparse activations for TopK. `rescale_acts_by_decoder_norm`, on by default, is switched off, since it costs another pass
over all [B, F] pre-activations and is no part of the case. Clipping of the gradient cannot be switched off.

Shape letters: B rows of a batch, D width of a row, F latents.
"""

from typing import Any

import sae_lens  # pyright: ignore[reportMissingImports]
import torch
from sae_lens.config import SAETrainerConfig  # pyright: ignore[reportMissingImports]
from sae_lens.registry import get_sae_training_class  # pyright: ignore[reportMissingImports]
from sae_lens.saes.sae import TrainingSAE  # pyright: ignore[reportMissingImports]
from sae_lens.training.sae_trainer import SAETrainer  # pyright: ignore[reportMissingImports]
from torch import Tensor

from benchmarks.step.case import Case
from benchmarks.step.contestants import Contestant
from benchmarks.step.start import RATE, start

VERSION = sae_lens.__version__
_ARCHITECTURES = {"topk": "topk", "jumprelu": "jumprelu", "relu": "standard"}
_STEPS = 1_000_000
"""The length of the schedule; far more steps than are taken."""


def settings(case: Case) -> list[str]:
    """The plain setting, and those with faster options switched on."""
    sparse = ["sparse"] if case.architecture == "topk" else []
    return ["", *sparse, "compiled", "bf16", "bf16 compiled"]


def build(case: Case, setting: str, batches: list[Tensor]) -> Contestant:
    """A trainer before its first step."""
    torch.manual_seed(0)
    chosen = setting.split()
    sae = _sae(case, "sparse" in chosen)
    _put_start(sae, case, batches)
    if "compiled" in chosen:  # as SAELens' own runner does
        sae.training_forward_pass = torch.compile(sae.training_forward_pass, mode=None, backend="inductor")
    config = SAETrainerConfig(
        total_training_samples=_STEPS * case.rows,
        train_batch_size_samples=case.rows,
        lr=RATE,
        lr_end=RATE / 10,
        autocast="bf16" in chosen,
    )
    trainer = SAETrainer(config, sae, iter(()))

    def step(x: Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1  # as its `fit` does

    return Contestant(step, lambda x: _l0(sae, x), sae.parameters)


def _sae(case: Case, sparse: bool) -> TrainingSAE[Any]:
    fields: dict[str, Any] = {}
    if case.architecture == "topk":
        fields = {"k": case.active, "rescale_acts_by_decoder_norm": False, "use_sparse_activations": sparse}
    sae, config = get_sae_training_class(_ARCHITECTURES[case.architecture])
    return sae(config(d_in=case.d, d_sae=case.width, **fields))


@torch.no_grad()
def _put_start(sae: Any, case: Case, batches: list[Tensor]) -> None:
    begin = start(case, batches, sae.W_enc.T)  # its W_enc is [D, F]
    sae.b_dec.copy_(begin.mean)
    if case.architecture == "jumprelu":
        sae.threshold.fill_(begin.threshold)
    elif case.architecture == "relu":
        sae.b_enc.fill_(-begin.threshold)


@torch.no_grad()
def _l0(sae: TrainingSAE[Any], x: Tensor) -> float:
    codes = sae.encode(x)
    return ((codes.to_dense() if codes.is_sparse else codes) != 0).sum(dim=1).double().mean().item()
