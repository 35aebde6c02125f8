"""Probed tokens: where the gradient of the model's prediction is taken, to see which latents matter there.

Of each of the first sequences one predicted token is probed, drawn with the sequence's number as the seed. Its
prediction is L = the logit of the next token minus the mean of all logits at its place (Gemma Scope, appendix C.3), and
the gradient of L by the token's own row at a site is exact for every sequence of a batch at once, since sequences do
not see each other. One backward pass serves every coder of every site. A latent's share in L, to first order, is
y_i = f_i (W_dec grad)_i.

Sites before a norm's gain are left out: they are read beside the model and not in it, so they have no gradient.

Shape letters: N sequences, T tokens a sequence, V vocabulary, D width of a site, Q probed tokens, F latents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from panscope.evals.metrics.uniformity import uniformity
from panscope.evals.outcome import TokenIndex, Uniformity
from panscope.evals.passes import LanguageModel
from panscope.site_kinds import KINDS
from panscope.types import Latents, Site, TokenBatch

_TOGETHER = 8
"""Sequences of one backward pass: what it keeps of every block takes far more memory than a forward pass."""
_LATENTS = 1 << 14
"""Decoder vectors that are held in float64 at a time."""


@dataclass(frozen=True)
class Probes:
    """The probed tokens of one batch."""

    sequences: Tensor
    """[Q] int64, the sequence of the batch that each is in."""
    positions: Tensor
    """[Q] int64, its place in it."""
    gradients: Mapping[Site, Tensor]
    """[Q, D] a site."""

    def rows(self, mask: Tensor) -> Tensor:
        """[Q] int64: which row each is among those that `mask` [N, T] takes."""
        numbers = torch.full(mask.shape, -1)
        numbers[mask] = torch.arange(int(mask.sum()))
        return numbers[self.sequences, self.positions]


def probe(
    lm: LanguageModel, batch: TokenBatch, predicted: Tensor, sites: Sequence[Site], *, first: int, probes: int
) -> Probes | None:
    """Probe the sequences numbered below `probes`, of which the batch's first is number `first`.

    None if no sequence or no site can be probed.
    `predicted` [N, T - 1] bool are the places that predict something.
    """
    chosen = [
        (n, t)
        for n in range(min(len(predicted), probes - first))
        if (t := _place(batch, predicted, n, first)) is not None
    ]
    seen = [site for site in sites if not KINDS[site.kind].no_gain]
    if not chosen or not seen:
        return None
    sequences, positions = torch.tensor(chosen).T
    parts = [
        _gradients(lm, batch, seen, sequences[i : i + _TOGETHER], positions[i : i + _TOGETHER])
        for i in range(0, len(sequences), _TOGETHER)
    ]
    return Probes(sequences, positions, {site: torch.cat([part[site] for part in parts]) for site in parts[0]})


def _place(batch: TokenBatch, predicted: Tensor, n: int, first: int) -> int | None:
    """A predicted token of sequence n whose own row is content; None if there is none."""
    places = (predicted[n] & batch.content[n, :-1]).nonzero().flatten()
    if not len(places):
        return None
    draw = torch.randint(len(places), (), generator=torch.Generator().manual_seed(first + n))
    return int(places[draw])


def _gradients(
    lm: LanguageModel, batch: TokenBatch, sites: Sequence[Site], sequences: Tensor, positions: Tensor
) -> dict[Site, Tensor]:
    """[Q, D] a site."""
    every = torch.arange(len(sequences))
    ids = batch.token_ids[sequences]
    targets = ids[every, positions + 1]

    def objective(logits: Tensor) -> Tensor:
        own = logits[every, positions].float()
        return (own[every, targets.to(own.device)] - own.mean(dim=1)).sum()

    gradients = lm.gradients(ids, batch.attention_mask[sequences], list(sites), objective)
    return {site: gradient[every, positions] for site, gradient in gradients.items()}


def uniformity_of(latents: Latents, W_dec: Tensor, gradient: Tensor, places: TokenIndex) -> Uniformity:
    """How evenly the active latents [Q, F] matter, with gradients [Q, D]; tokens at which none does are left out."""
    pull = [gradient.double() @ some.double().T for some in W_dec.split(_LATENTS)]
    y = latents.dense().double() * torch.cat(pull, dim=1)
    some = (y != 0).any(dim=1)
    kept = TokenIndex(places.sequences[some], places.positions[some], places.subsets[some])
    return Uniformity(uniformity(y[some]), kept)
