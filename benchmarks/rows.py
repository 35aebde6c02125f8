"""The rows of a benchmark: activations of a language model at some sites, held in memory and shuffled once.

Every tool is given the same rows in the same order, so that only what it does with them differs.

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
    """What every tool may spend on one coder."""

    width: int = 512
    """Latents."""
    batch: int = 512
    """Rows a step."""
    steps: int = 2000
    seed: int = 0
    """Of the first weights; the rows have a seed of their own."""


@dataclass(frozen=True)
class Rows:
    """The rows of one site."""

    training: Tensor
    """[N, D] float32, shuffled: step s of a run takes the s-th batch of them."""
    held_out: Tensor
    """[M, D] float32, of documents that `training` has none of."""

    def batches(self, budget: Budget) -> Iterator[Tensor]:
        """The [B, D] that every tool trains on, a step each."""
        assert budget.steps * budget.batch <= len(self.training), "make as many rows as the budget takes"
        return iter(self.training[: budget.steps * budget.batch].split(budget.batch))


@torch.no_grad()
def make_rows(
    lm: LanguageModel, data: DataConfig, sites: list[Site], *, training: int, held_out: int, seed: int
) -> dict[Site, Rows]:
    """The first `training` and `held_out` rows of a seeded walk over the documents, each row once.

    Raises UserError where the text has too few.
    """
    order = torch.randperm(training, generator=torch.Generator().manual_seed(seed))
    seen = _read(lm, data, sites, part="training", rows=training, seed=seed)
    unseen = _read(lm, data, sites, part="held_out", rows=held_out, seed=seed)
    return {site: Rows(seen.pop(site)[order], unseen[site]) for site in sites}


def _read(
    lm: LanguageModel, data: DataConfig, sites: list[Site], *, part: Part, rows: int, seed: int
) -> dict[Site, Tensor]:
    """[rows, D] a site, in the order of the text."""
    found = {site: torch.empty(rows, lm.width(site)) for site in sites}
    tokens = TokenStream(open_documents(data), lm.tokenizer, data, part=part, seed=seed, epochs=1)
    filled = 0
    for batch in LiveActivations(lm, tokens, sites):
        filled += _put(found, batch, filled)
        if filled == rows:
            return found
    raise UserError(f"data.text: its {part} part has {filled} rows, fewer than {rows}; ask for fewer or give more text")


def _put(found: dict[Site, Tensor], batch: ActivationBatch, start: int) -> int:
    """Copy a batch behind the first `start` rows; returns how many of it there was room for."""
    for site, x in found.items():
        x[start : start + len(batch)] = batch.rows[site][: len(x) - start]
    return min(len(batch), len(next(iter(found.values()))) - start)
