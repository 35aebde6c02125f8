"""The rows that coders are trained and measured on: activations of a language model, in memory and shuffled once.

Every tool gets the same rows in the same order.

Shape letters: N rows to train on, M held-out rows, B rows a step, D width of a site.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from panscope.activations.live import LiveActivations
from panscope.data.documents import DataConfig, open_documents
from panscope.data.source import Part
from panscope.data.tokens import TokenStream
from panscope.lms.model import LanguageModel
from panscope.types import ActivationBatch, Site, UserError


@dataclass(frozen=True)
class Budget:
    """The size of one coder and of its training, the same for every tool."""

    width: int = 512
    """Latents."""
    batch: int = 512
    """Rows a step."""
    steps: int = 2000
    seed: int = 0
    """The seed of the initial weights; the rows have a seed of their own."""


@dataclass(frozen=True)
class Rows:
    """The rows of one site."""

    training: Tensor
    """[N, D] float32, shuffled; step s takes the s-th batch of them."""
    held_out: Tensor
    """[M, D] float32, from documents of which no row is in `training`."""

    def batches(self, budget: Budget) -> Iterator[Tensor]:
        """The batches [B, D] that every tool trains on, one for each step."""
        assert budget.steps * budget.batch <= len(self.training), "make as many rows as the budget takes"
        return iter(self.training[: budget.steps * budget.batch].split(budget.batch))


@torch.no_grad()
def make_rows(
    lm: LanguageModel, data: DataConfig, sites: list[Site], *, training: int, held_out: int, seed: int
) -> dict[Site, Rows]:
    """The first `training` and `held_out` rows of a seeded walk over the documents, each row once.

    Raises UserError if the text has too few.
    """
    order = torch.randperm(training, generator=torch.Generator().manual_seed(seed))
    seen = _read(lm, data, sites, part="training", rows=training, seed=seed)
    unseen = _read(lm, data, sites, part="held_out", rows=held_out, seed=seed)
    return {site: Rows(seen.pop(site)[order], unseen[site]) for site in sites}


def _read(
    lm: LanguageModel, data: DataConfig, sites: list[Site], *, part: Part, rows: int, seed: int
) -> dict[Site, Tensor]:
    """[rows, D] of each site, in the order in which the documents are read."""
    found = {site: torch.empty(rows, lm.width(site)) for site in sites}
    tokens = TokenStream(open_documents(data), lm.tokenizer, data, part=part, seed=seed, epochs=1)
    filled = 0
    for batch in LiveActivations(lm, tokens, sites):
        filled += _put(found, batch, filled)
        if filled == rows:
            return found
    raise UserError(f"data.text: its {part} part has {filled} rows, fewer than {rows}; ask for fewer or give more text")


def _put(found: dict[Site, Tensor], batch: ActivationBatch, start: int) -> int:
    """Copy a batch to the rows from `start` on; returns how many rows there was room for."""
    for site, x in found.items():
        x[start : start + len(batch)] = batch.rows[site][: len(x) - start]
    return min(len(batch), len(next(iter(found.values()))) - start)
