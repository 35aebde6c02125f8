"""Bring every decoder vector to norm 1 and move the old norm into the encoder (Llama Scope section 3.3.4).

W_dec_i' = W_dec_i / n_i, and with the same old n_i: W_enc_i' = n_i W_enc_i, and so every bias and threshold of the
code. A code then tells how far the latent moves the reconstruction.
"""

import torch

from panscope import coders
from panscope.coders.base import Coder
from panscope.coders.batchtopk import BatchTopKConfig
from panscope.coders.topk import TopKConfig
from panscope.types import UserError


def keeps_selection(coder: Coder) -> bool:
    """Whether unit norms would choose the same latents: all but TopK that ranks by value while its norms differ."""
    if not isinstance(coder.config, TopKConfig) or coder.config.selection == "decoder_norm":
        return True
    norms = coder.W_dec.detach().double().norm(dim=1)
    return bool(norms.max() <= norms.min() * (1 + 1e-5))


@torch.no_grad()
def unit_decoder(coder: Coder) -> Coder:
    """The same coder with unit decoder vectors, in float32; a latent whose vector is zero is silenced.

    A TopK coder that ranks by decoder norm becomes one that ranks by value. Raises UserError for a TopK coder that
    ranks by value while its norms differ: there the change would choose other latents.
    """
    assert not isinstance(coder.config, BatchTopKConfig), "turn BatchTopK into JumpReLU first"
    w = {name: tensor.double() for name, tensor in coder.tensors().items()}
    norms = w["W_dec"].norm(dim=1)
    changes: dict[str, object] = {"decoder_norm": "unit", "decoder_init_norm": 1.0}
    if not keeps_selection(coder):
        raise UserError(
            "selection is 'value' and decoder norms differ: unit norms would choose other latents; "
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
