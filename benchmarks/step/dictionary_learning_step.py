"""dictionary_learning's step: `update` of its trainers, which its own `trainSAE` calls for every batch.

It has no faster setting on a CPU: `trainSAE` uses autocast on CUDA only.

dictionary_learning 0.1.0 requires nnsight below 0.4, which does not support transformers 5. Only its activation buffers
need nnsight, but its `__init__` imports them, so the package's `trainers` are imported here without running that file.
The trainers themselves need torch and einops only, and run unchanged.

Shape letters: B rows of a batch, D width of a row, F latents.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
import types
from typing import Any

import torch
from torch import Tensor

from benchmarks.step.case import Case
from benchmarks.step.contestants import Contestant
from benchmarks.step.start import RATE, start

VERSION = importlib.metadata.version("dictionary-learning")
_PACKAGE = "dictionary_learning"
_TRAINERS = {"topk": "TopKTrainer", "jumprelu": "JumpReluTrainer", "relu": "StandardTrainer"}
_STEPS = 1_000_000
"""The length of the schedule; far more steps than are taken."""


def settings(case: Case) -> list[str]:
    """The plain setting, for every architecture."""
    del case
    return [""]


def build(case: Case, setting: str, batches: list[Tensor]) -> Contestant:
    """A trainer before its first step."""
    del setting
    torch.manual_seed(0)
    trainer = _trainer(case)
    _put_start(trainer.ae, case, batches)
    done = 0

    def step(x: Tensor) -> None:
        nonlocal done
        trainer.update(done, x)
        done += 1

    return Contestant(step, lambda x: _l0(trainer.ae, x), trainer.ae.parameters)


def _trainer(case: Case) -> Any:
    fields: dict[str, Any] = {"topk": {"k": case.active}, "jumprelu": {"target_l0": float(case.active)}, "relu": {}}
    return getattr(_trainers(), _TRAINERS[case.architecture])(
        steps=_STEPS,
        activation_dim=case.d,
        dict_size=case.width,
        layer=0,
        lm_name="none",
        lr=RATE,
        device="cpu",
        **fields[case.architecture],
    )


def _trainers() -> Any:
    """The package's `trainers`, imported without running its `__init__`."""
    if _PACKAGE not in sys.modules:
        found = importlib.util.find_spec(_PACKAGE)
        assert found is not None and found.submodule_search_locations is not None
        package = types.ModuleType(_PACKAGE)
        package.__path__ = list(found.submodule_search_locations)
        sys.modules[_PACKAGE] = package
    return importlib.import_module(f"{_PACKAGE}.trainers")


@torch.no_grad()
def _put_start(ae: Any, case: Case, batches: list[Tensor]) -> None:
    if case.architecture == "topk":
        return  # its first update sets the decoder bias to the rows' geometric median
    if case.architecture == "jumprelu":
        begin = start(case, batches, ae.W_enc.T)  # its W_enc is [D, F], and b_dec is not subtracted from the input
        ae.b_dec.copy_(begin.mean)
        ae.b_enc.copy_(-begin.mean @ ae.W_enc)
        ae.threshold.fill_(begin.threshold)
    else:
        begin = start(case, batches, ae.encoder.weight)
        ae.bias.copy_(begin.mean)
        ae.encoder.bias.fill_(-begin.threshold)


@torch.no_grad()
def _l0(ae: Any, x: Tensor) -> float:
    return (ae.encode(x) != 0).sum(dim=1).double().mean().item()
