"""Normalise decoder vectors to norm 1 and move their norms into the encoder (Llama Scope section 3.3.4).

W_dec_i' = W_dec_i / n_i and W_enc_i' = n_i W_enc_i with the old norms n_i; the biases and thresholds of the encoder are
multiplied by n_i too. A code is then the length of the latent's contribution to the reconstruction.
"""

import torch

from panscope import coders
from panscope.coders.base import Coder
from panscope.coders.batchtopk import BatchTopKConfig
from panscope.coders.topk import TopKConfig
from panscope.types import UserError


def keeps_selection(coder: Coder) -> bool:
    """Whether unit norms would select the same latents: true except for TopK that ranks by value with unequal norms."""
    if not isinstance(coder.config, TopKConfig) or coder.config.selection == "decoder_norm":
        return True
    norms = coder.W_dec.detach().double().norm(dim=1)
    return bool(norms.max() <= norms.min() * (1 + 1e-5))


@torch.no_grad()
def unit_decoder(coder: Coder) -> Coder:
    """The same coder with unit decoder vectors, in float32; a latent with a decoder vector of zeros becomes inactive.

    A TopK coder that ranks by decoder norm becomes one that ranks by value. Raises UserError for a TopK coder that
    ranks by value with unequal norms, since other latents would be selected.
    """
    assert not isinstance(coder.config, BatchTopKConfig), "turn BatchTopK into JumpReLU first"
    w = {name: tensor.double() for name, tensor in coder.tensors().items()}
    norms = w["W_dec"].norm(dim=1)
    changes: dict[str, object] = {"decoder_norm": "unit", "decoder_init_norm": 1.0}
    if not keeps_selection(coder):
        raise UserError(
            "selection is 'value' and decoder norms differ: unit norms would select other latents; "
            "train with decoder_norm = 'unit' or selection = 'decoder_norm'"
        )
    if isinstance(coder.config, TopKConfig):
        changes["selection"] = "value"
    divisors = torch.where(norms > 0, norms, 1.0)
    w["W_dec"] /= divisors[:, None]
    w["W_enc"] *= norms[:, None]
    for name in coder.in_code_units:
        w[name] *= divisors if name in coder.positive else norms
    unit = coders.build(coder.config.replace(**changes)).to(coder.W_enc.device)
    return unit.load_tensors({name: tensor.float() for name, tensor in w.items()})
