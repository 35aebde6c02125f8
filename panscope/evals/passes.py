"""Forward passes over one token batch: the clean one, and others with the content rows of one site replaced.

Special tokens and padding always keep the model's own activations, so a coder is judged only where it was trained.

Shape letters: N sequences, T tokens a sequence, V vocabulary, B content tokens of the batch, D width of a site.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from panscope.evals.predictions import Predictions, Score
from panscope.lms.model import Start
from panscope.types import Site, TokenBatch


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
    """What evaluation asks of a language model: to be read and spliced, without gradients."""

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


def content_rows(lm: LanguageModel, batch: TokenBatch, sites: list[Site]) -> dict[Site, Tensor]:
    """[B, D] a site: its activations at content tokens, with no prediction made."""
    reading = lm.run(batch.token_ids, batch.attention_mask, read=sites, splice={}, logits=False)
    return {site: _content_of(reading.activations[site], batch) for site in sites}


class CleanPass:
    """One batch read by the untouched model: rows of every site asked for, and what the model predicts.

    An altered pass begins at the block of the site that is altered, from what is known of the clean one: no block
    before it is run again, and in its block neither attention nor an MLP that the change comes after.
    """

    def __init__(
        self, lm: LanguageModel, batch: TokenBatch, sites: Sequence[Site], altered: Collection[Site] = ()
    ) -> None:
        """`sites` are those whose rows are wanted, `altered` those of them at which other passes will differ."""
        known = {before for site in altered for before in _before(site)}
        reading = lm.run(batch.token_ids, batch.attention_mask, read=sorted({*sites, *known}), splice={}, logits=True)
        assert reading.logits is not None
        self._lm = lm
        self._batch = batch
        self.rows = {site: _content_of(reading.activations[site], batch) for site in sites}
        self._known = {site: reading.activations[site] for site in known}
        self._predictions = Predictions(batch, reading.logits)

    @property
    def ce(self) -> Tensor:
        """[P] float64, the untouched model's loss at each predicted token."""
        return self._predictions.ce_clean

    def replaced(self, site: Site, rows: Tensor) -> Score:
        """Run again with `rows` [B, D] at the content tokens of `site`, and compare with the clean pass."""
        return self._predictions.score(self._logits_with(site, rows))

    def ablated(self, site: Site, row: Tensor) -> Tensor:
        """[P] float64, the loss with the one `row` [D] at every content token of `site`."""
        return self._predictions.losses(self._logits_with(site, row))

    def _logits_with(self, site: Site, rows: Tensor) -> Tensor:
        """[N, T, V]."""
        known = {before: self._known[before] for before in _before(site)}
        residual, splice = known.pop(_residual(site), None), {}
        if site in known:
            known[site] = self._spliced(known[site], rows)
        else:
            splice[site] = lambda activations: self._spliced(activations, rows)
        ids, mask = self._batch.token_ids, self._batch.attention_mask
        start = Start(site.layer, residual, known)
        reading = self._lm.run(ids, mask, read=[], splice=splice, logits=True, start=start)
        assert reading.logits is not None
        return reading.logits

    def _spliced(self, activations: Tensor, rows: Tensor) -> Tensor:
        """[N, T, D] with `rows` at the content tokens."""
        spliced = activations.clone()
        spliced[self._batch.content.to(activations.device)] = rows.to(activations)
        return spliced


def _before(site: Site) -> list[Site]:
    """What is known of a pass that differs at `site` only: the block's input, and what attention and MLP gave.

    Where those themselves are altered, they are what is altered in it.
    """
    early = [_residual(site)] if site.layer else []
    if site.kind != "attn_z":
        early.append(Site(site.layer, "attn_out"))
    if site.kind in ("mlp_out", "resid_post"):
        early.append(Site(site.layer, "mlp_out"))
    return early


def _residual(site: Site) -> Site:
    """Where the block's input is read; of no meaning for the first block."""
    return Site(max(0, site.layer - 1), "resid_post")


def _content_of(activations: Tensor, batch: TokenBatch) -> Tensor:
    """[N, T, D] -> [B, D]."""
    return activations[batch.content.to(activations.device)]
