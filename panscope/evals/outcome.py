"""What one coder did to one token batch: the only thing a metric ever sees.

It says nothing of architectures, sites or language models, so every metric works for every coder.

Shape letters: B content tokens of the batch, E width of the predicted site, F latents, P predicted tokens, Q probed
tokens, M of any of these.
"""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from panscope.types import Latents


@dataclass(frozen=True)
class TokenIndex:
    """The indices of some tokens of a batch."""

    sequences: Tensor
    """[M] int64, the sequence of the batch that each is in, from 0."""
    positions: Tensor
    """[M] int64, its place in the sequence, from 0."""
    subsets: Tensor
    """[M] int64, the subset of the text that each belongs to, from 0; of a prediction, that of its masked token."""


@dataclass(frozen=True)
class Span:
    """What one batch is of the whole text."""

    first_row: int
    """How many content tokens come before it."""
    sequences: int
    """How many sequences it has."""
    rows: TokenIndex
    """Of its B content tokens, in the order of rows."""
    predicted: TokenIndex
    """Of the P tokens from which a content token is predicted."""


@dataclass(frozen=True)
class Losses:
    """What the model made of the text in one altered pass; nats at each of P predicted tokens."""

    ce: Tensor
    """[P] float64, -log p(next token)."""
    kl: Tensor
    """[P] float64, KL(clean || altered) over the vocabulary; empty where it was left out, as is the other."""
    kl_reverse: Tensor
    """[P] float64, KL(altered || clean)."""


@dataclass(frozen=True)
class Uniformity:
    """How evenly the active latents matter at Q probed tokens; `evals.probes` says how."""

    values: Tensor
    """[Q] float64, from 1/L0 to 1."""
    places: TokenIndex
    """Of the Q tokens."""


@dataclass(frozen=True)
class Outcome:
    """Rows and their reconstructions at content tokens; losses of the model at predicted tokens."""

    span: Span
    """The indices of rows and predictions in the text."""
    y: Tensor
    """[B, E] float64, the rows that were to be predicted."""
    y_hat: Tensor
    """[B, E] float64, the coder's reconstruction of them."""
    centre: Tensor
    """[E] float64, the site's mean over the whole evaluation set."""
    latents: Latents
    """The codes of the B rows."""
    ce_clean: Tensor
    """[P] float64, -log p(next token) of the untouched model."""
    spliced: Losses
    """With y_hat in the place of y."""
    zero_ablated: Losses
    """With 0 in the place of y."""
    mean_ablated: Losses
    """With the site's mean in the place of y; divergences left out."""
    uniformity: Uniformity | None = None
    """At the probed tokens; None where nothing was probed."""

    @cached_property
    def errors(self) -> Tensor:
        """[B] squared distance of each row from its reconstruction."""
        return (self.y - self.y_hat).square().sum(dim=1)

    @cached_property
    def scatters(self) -> Tensor:
        """[B] squared distance of each row from the site's mean."""
        return (self.y - self.centre).square().sum(dim=1)

    @cached_property
    def sizes(self) -> Tensor:
        """[B] squared norm of each row."""
        return self.y.square().sum(dim=1)

    @cached_property
    def sizes_hat(self) -> Tensor:
        """[B] squared norm of each reconstruction."""
        return self.y_hat.square().sum(dim=1)

    @cached_property
    def products(self) -> Tensor:
        """[B] y . y_hat."""
        return (self.y * self.y_hat).sum(dim=1)
