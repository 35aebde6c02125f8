"""Panscope's step: `CoderTrainer.step`, with the kernels that the setting names.

The step includes what the fastest peer's step includes: b_dec subtracted from the input, and for the unit-norm decoder
the removal of the gradient's parallel part and the renormalisation. For JumpReLU and ReLU, whose fastest peer clips the
gradient, it clips too.

Shape letters: B rows of a batch, D width of a row, F latents.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.step.case import Case
from benchmarks.step.contestants import Contestant
from benchmarks.step.start import RATE, start
from panscope import __version__, coders
from panscope.coders.base import Coder
from panscope.coders.wiring import UNIT, Wiring
from panscope.kernels.backend import Kernels
from panscope.kernels.choose import sparse_kernels
from panscope.training.coder_trainer import CoderTrainer, StepBackend
from panscope.training.schedule import TrainingConfig
from panscope.types import ActivationBatch, Site, UserError

VERSION = __version__
_SITE = Site(0, "resid_post")
_STEPS = 1_000_000
"""The length of the schedule; far more steps than are taken."""
_FIELDS: dict[str, dict[str, Any]] = {
    "topk": {},
    "jumprelu": {"bandwidth": 0.05},  # SAELens' default
    "relu": {},
}
_PRICE = 1e-3
"""The coefficient of the penalties; the operations of a step do not depend on its value."""


def settings(case: Case) -> list[str]:
    """The names of the kernels that can compute a step."""
    del case
    return ["sparse", "reference"]


def build(case: Case, setting: str, batches: list[Tensor]) -> Contestant:
    """A coder in training, before its first step."""
    trainer = coder_trainer(case, setting, batches)
    nowhere = torch.zeros(case.rows, dtype=torch.int64)
    done = 0

    def step(x: Tensor) -> None:
        nonlocal done
        trainer.step(ActivationBatch({_SITE: x}, nowhere, nowhere, nowhere), done)
        done += 1

    return Contestant(step, lambda x: _l0(trainer.coder, x), trainer.coder.parameters)


def coder_trainer(case: Case, kernels: str, batches: list[Tensor]) -> CoderTrainer:
    """The trainer of a coder of this case; `kernels` is one of `settings`."""
    architecture = case.architecture
    sparsity = case.active if architecture == "topk" else _PRICE
    shape = {"d_in": case.d, "d_out": case.d, "width": case.width, "sparsity": sparsity, "pre_encoder_bias": True}
    coder = coders.build(coders.config_type(architecture).read(shape | _FIELDS[architecture], "the case"))
    coder.initialise(torch.Generator().manual_seed(0))
    _put_start(coder, case, batches)
    fields = {"normaliser": "none", "learning_rate": RATE, "clip_norm": None if architecture == "topk" else 1.0}
    training = TrainingConfig.read({name: value for name, value in fields.items() if value is not None}, "the case")
    wiring = Wiring(wiring="sae", reads=(_SITE,), predicts=(_SITE,))
    return CoderTrainer(str(case), coder, wiring, UNIT, training, steps=_STEPS, backend=StepBackend(_kernels(kernels)))


def _kernels(name: str) -> Kernels | None:
    """The `kernels` of a `CoderTrainer`; None stands for the reference."""
    if name == "reference":
        return None
    found = sparse_kernels(torch.device("cpu"))
    if found.kernels is None:
        raise UserError(f"panscope has no {name} kernels on this machine: {found.detail}")
    return found.kernels


@torch.no_grad()
def _put_start(coder: Coder, case: Case, batches: list[Tensor]) -> None:
    begin = start(case, batches, coder.W_enc)
    coder.b_dec.copy_(begin.mean)
    if case.architecture == "jumprelu":
        coder.get_parameter("threshold").fill_(begin.threshold)
    elif case.architecture == "relu":
        coder.b_enc.fill_(-begin.threshold)


@torch.no_grad()
def _l0(coder: Coder, x: Tensor) -> float:
    return coder.encode(x).l0().double().mean().item()
