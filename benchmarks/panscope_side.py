"""Panscope's side of `quality_vs_saelens`: a coder planned from a recipe, trained by `Trainee` on rows given to it.

Nothing is tuned here: the recipe's own rule fits it to the length of the run.

Shape letters: N rows to train on, M rows to measure on, B rows a step, D width of a site, F latents.
"""

import time

import torch
from torch import Tensor

from benchmarks.quality import Quality, measure
from benchmarks.rows import Budget, Rows
from panscope import __version__, coders
from panscope.activations.norms import measure_norms
from panscope.coders.wiring import Wiring
from panscope.lms.facts import ModelFacts
from panscope.suite.coder import PlannedCoder, plan_coder
from panscope.suite.normalisers import normaliser_of
from panscope.train.trainee import Trainee
from panscope.types import ActivationBatch, Site

VERSION = __version__
RECIPES = {"topk": "llama_scope", "jumprelu": "gemma_scope", "gated": "saebench"}
"""The recipe that is taken for each architecture."""


def train(
    architecture: str, site: Site, rows: Rows, *, lm: ModelFacts, sparsity: float, budget: Budget
) -> tuple[Quality, float]:
    """Train one coder on the first `steps` batches; its quality on the held-out rows, and the seconds training took."""
    planned = _plan(architecture, site, lm, sparsity, budget)
    start = time.perf_counter()
    norms = measure_norms((_batch(site, x) for x in rows.batches(budget)), budget.steps * budget.batch)
    coder = coders.build(planned.coder).initialise(torch.Generator().manual_seed(budget.seed))
    trainee = Trainee(
        planned.name, coder, planned.wiring, normaliser_of(planned, norms), planned.training, steps=budget.steps
    )
    for step, x in enumerate(rows.batches(budget)):
        trainee.step(_batch(site, x), step)
    seconds = time.perf_counter() - start
    return measure(lambda x: _code_and_reconstruction(trainee, x), rows.held_out), seconds


def _plan(architecture: str, site: Site, lm: ModelFacts, sparsity: float, budget: Budget) -> PlannedCoder:
    point = {
        "wiring": Wiring(wiring="sae", reads=(site,), predicts=(site,)),
        "recipe": RECIPES[architecture],
        "architecture": architecture,
        "width": budget.width,
        "sparsity": int(sparsity) if architecture == "topk" else sparsity,
        "convert_to": "none",
    }
    return plan_coder(point, lm, budget.steps * budget.batch, budget.batch)[0]


def _batch(site: Site, x: Tensor) -> ActivationBatch:
    """Rows [B, D] of one site; where they come from plays no part here."""
    nowhere = torch.zeros(len(x), dtype=torch.int64)
    return ActivationBatch({site: x}, nowhere, nowhere, nowhere)


def _code_and_reconstruction(trainee: Trainee, x: Tensor) -> tuple[Tensor, Tensor]:
    coder = trainee.finished()
    inside, stats = trainee.normaliser.input(x)
    latents = coder.encode(inside)
    return latents.dense(), trainee.normaliser.undo(coder.decode(latents, inside), stats)
