"""Panscope's coders in `benchmarks.quality.vs_saelens`: planned from a recipe and trained on given rows.

Nothing is tuned here: the recipe itself adapts to the length of the run.

Shape letters: N rows to train on, M rows to measure on, B rows a step, D width of a site, F latents.
"""

import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality.measure import Quality, measure
from benchmarks.quality.rows import Budget, Rows
from panscope import __version__, coders
from panscope.activations.norms import measure_norms
from panscope.coders.wiring import Wiring
from panscope.lms.facts import ModelFacts
from panscope.planning.coder import PlannedCoder, plan_coder
from panscope.runs.normalisers import normaliser_of
from panscope.training.coder_trainer import CoderTrainer
from panscope.types import ActivationBatch, Site

VERSION = __version__


def point(recipe: str, architecture: str, sparsity: float) -> dict[str, Any]:
    """The fields of a `[[coders]]` table; `sparsity` is K, JumpReLU's target L0, or Gated's coefficient."""
    value = int(sparsity) if architecture == "topk" else sparsity
    fields = {"recipe": recipe, "architecture": architecture, "convert_to": "none"}
    return fields | {"target_l0" if architecture == "jumprelu" else "sparsity": value}


def train(point: dict[str, Any], site: Site, rows: Rows, *, lm: ModelFacts, budget: Budget) -> tuple[Quality, float]:
    """Train one coder on the first `steps` batches; returns its quality on held-out rows and the seconds."""
    planned = _plan(point, site, lm, budget)
    start = time.perf_counter()
    norms = measure_norms((_batch(site, x) for x in rows.batches(budget)), budget.steps * budget.batch)
    coder = coders.build(planned.coder).initialise(torch.Generator().manual_seed(budget.seed))
    trainer = CoderTrainer(
        planned.name, coder, planned.wiring, normaliser_of(planned, norms), planned.training, steps=budget.steps
    )
    for step, x in enumerate(rows.batches(budget)):
        trainer.step(_batch(site, x), step)
    seconds = time.perf_counter() - start
    return measure(lambda x: _code_and_reconstruction(trainer, x), rows.held_out), seconds


def _plan(point: dict[str, Any], site: Site, lm: ModelFacts, budget: Budget) -> PlannedCoder:
    where = {"wiring": Wiring(wiring="sae", reads=(site,), predicts=(site,)), "width": budget.width}
    return plan_coder(where | point, lm, budget.steps * budget.batch, budget.batch)[0]


def _batch(site: Site, x: Tensor) -> ActivationBatch:
    """Rows [B, D] of one site, with zeros for tokens, documents and positions, which training does not use."""
    nowhere = torch.zeros(len(x), dtype=torch.int64)
    return ActivationBatch({site: x}, nowhere, nowhere, nowhere)


def _code_and_reconstruction(trainer: CoderTrainer, x: Tensor) -> tuple[Tensor, Tensor]:
    coder = trainer.finished()
    inside, stats = trainer.normaliser.input(x)
    latents = coder.encode(inside)
    return latents.dense(), trainer.normaliser.undo(coder.decode(latents, inside), stats)
