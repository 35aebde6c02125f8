"""What one coder did to one token batch: the only thing a metric ever sees.

It says nothing of architectures, sites or language models, so every metric works for every coder.

Shape letters: B content tokens of the batch, E width of the predicted site, F latents, P predicted tokens.
"""

from dataclasses import dataclass

from torch import Tensor

from panscope.types import Latents


@dataclass(frozen=True)
class Outcome:
    """Rows and their reconstructions at content tokens; losses of the model, in nats, at predicted tokens."""

    y: Tensor
    """[B, E] float64, the rows that were to be predicted."""
    y_hat: Tensor
    """[B, E] float64, the coder's reconstruction of them."""
    latents: Latents
    """The codes of the B rows."""
    ce_clean: Tensor
    """[P] float64, -log p(next token) of the untouched model."""
    ce_spliced: Tensor
    """[P] float64, the same with y_hat in the place of y."""
    ce_zero_ablated: Tensor
    """[P] float64, the same with 0 in the place of y."""
    ce_mean_ablated: Tensor
    """[P] float64, the same with the site's mean in the place of y."""
    kl: Tensor
    """[P] float64, KL(clean || spliced) over the vocabulary."""
