"""Forward passes over one token batch: the clean one, and others with the rows of one site replaced.

Special tokens keep the model's own activations, so that a coder is measured only where it was trained; other tools
replace them too, which `splice` "all" does. Padding is never touched.

Shape letters: N sequences, T tokens a sequence, V vocabulary, D width of a site, M replaced tokens of the batch.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from panscope.evals.outcome import Losses
from panscope.evals.predictions import LossMask, Predictions
from panscope.lms.model import Start
from panscope.site_kinds import KINDS
from panscope.types import Site, TokenBatch

Splice = Literal["content", "all"]
"""Which tokens are replaced: text alone, or special tokens too."""


class Reading(Protocol):
    """What a forward pass gives back."""

    @property
    def activations(self) -> Mapping[Site, Tensor]:
        """[N, T, D] a site that was asked for."""
        ...

    @property
    def logits(self) -> Tensor | None:
        """[N, T, V] where they were asked for."""
        ...


class LanguageModel(Protocol):
    """What evaluation asks of a language model."""

    def run(
        self,
        token_ids: Tensor,
        attention_mask: Tensor,
        *,
        read: list[Site],
        splice: dict[Site, Callable[[Tensor], Tensor]],
        logits: bool,
        start: Start | None = None,
    ) -> Reading:
        """One forward pass over token ids [N, T]; each function of `splice` maps its site's [N, T, D] to a new one.

        With `start` it begins there.
        """
        ...

    def gradients(
        self, token_ids: Tensor, attention_mask: Tensor, sites: list[Site], objective: Callable[[Tensor], Tensor]
    ) -> Mapping[Site, Tensor]:
        """[N, T, D] a site: the gradient of objective(logits [N, T, V]), a number, by its activations."""
        ...


def content_rows(lm: LanguageModel, batch: TokenBatch, sites: list[Site]) -> dict[Site, Tensor]:
    """[B, D] a site: its activations at content tokens, with no prediction made."""
    reading = lm.run(batch.token_ids, batch.attention_mask, read=sites, splice={}, logits=False)
    return {site: _at(batch.content, reading.activations[site]) for site in sites}


@dataclass(frozen=True)
class Replacement:
    """What takes the place of a site's rows in an altered pass."""

    rows: Tensor
    """[M, D]."""
    divergences: bool = True
    """Whether the predictions are compared with the clean ones, and not with the text alone."""


class CleanPass:
    """One batch read by the untouched model: rows of every site asked for, and what the model predicts.

    An altered pass begins at the block of the site that is altered, from what is known of the clean one: no block
    before it is run again, and in its block neither attention nor an MLP that the change comes after.
    """

    def __init__(
        self,
        lm: LanguageModel,
        batch: TokenBatch,
        sites: Sequence[Site],
        altered: Collection[Site] = (),
        *,
        splice: Splice = "content",
        loss_mask: LossMask = "target",
    ) -> None:
        """`sites` are those whose rows are wanted, `altered` those of them at which other passes will differ."""
        known = {before for site in altered for before in _before(site)}
        reading = lm.run(batch.token_ids, batch.attention_mask, read=sorted({*sites, *known}), splice={}, logits=True)
        assert reading.logits is not None
        self._lm = lm
        self._batch = batch
        self._mask = batch.content if splice == "content" else batch.attention_mask
        self.is_content = batch.content[self._mask].to(reading.logits.device)
        """[M] bool: which of the rows are of content tokens."""
        self.rows = {site: _at(self._mask, reading.activations[site]) for site in sites}
        """[M, D] a site: the rows that an altered pass replaces."""
        self._known = {site: reading.activations[site] for site in known}
        self._predictions = Predictions(batch, reading.logits, loss_mask)

    @property
    def ce(self) -> Tensor:
        """[P] float64, the untouched model's loss at each predicted token."""
        return self._predictions.ce_clean

    def altered(self, site: Site, replacements: Sequence[Replacement]) -> list[Losses]:
        """What the model predicts with each of `replacements` at `site`, all in one pass."""
        times = len(replacements)
        known = {before: self._known[before].repeat(times, 1, 1) for before in _before(site)}
        residual, splice = known.pop(_residual(site), None), {}
        if site in known:
            known[site] = self._spliced(known[site], replacements)
        else:
            splice[site] = lambda activations: self._spliced(activations, replacements)
        ids, mask = self._batch.token_ids.repeat(times, 1), self._batch.attention_mask.repeat(times, 1)
        start = Start(site.layer, residual, known)
        reading = self._lm.run(ids, mask, read=[], splice=splice, logits=True, start=start)
        assert reading.logits is not None
        return [
            self._predictions.losses(logits, divergences=one.divergences)
            for one, logits in zip(replacements, reading.logits.chunk(times), strict=True)
        ]

    def _spliced(self, activations: Tensor, replacements: Sequence[Replacement]) -> Tensor:
        """[copies * N, T, D] with each of `replacements` in its copy of the batch."""
        spliced = activations.clone()
        mask = self._mask.repeat(len(replacements), 1).to(activations.device)
        spliced[mask] = torch.cat([one.rows.to(activations) for one in replacements])
        return spliced


def _before(site: Site) -> list[Site]:
    """What is known of a pass that differs at `site` only: the block's input, and what attention and MLP gave.

    Where those themselves are altered, they are what is altered in it.
    """
    early = [_residual(site)] if site.layer else []
    outputs = [kind for kind in ("attn_out", "mlp_out") if KINDS[kind].order <= KINDS[site.kind].order]
    return early + [Site(site.layer, kind) for kind in outputs]


def _residual(site: Site) -> Site:
    """Where the block's input is read; of no meaning for the first block."""
    return Site(max(0, site.layer - 1), "resid_post")


def _at(mask: Tensor, activations: Tensor) -> Tensor:
    """[N, T, D] -> [M, D]."""
    return activations[mask.to(activations.device)]
