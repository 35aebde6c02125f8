"""Fold the normaliser and the pre-encoder bias into the weights, so that the coder works on raw activations.

With s_in, s_out the normaliser's factors (Gemma Scope appendix A writes C = 1/s; Llama Scope section 3.3.3, S_in and
S_out):  b_enc' = (b_enc - W_enc b_dec) / s_in,  threshold' = threshold / s_in,  W_dec' = W_dec s_in / s_out,
b_dec' = b_dec / s_out.  W_enc stays, so codes come out in raw units: f' = f / s_in. ReLU, TopK and JumpReLU commute
with a positive factor, so reconstructions do not change.

Shape letters: F latents, D input width.
"""

import torch

from panscope import coders
from panscope.coders.base import Coder
from panscope.coders.jumprelu import JumpReLUConfig
from panscope.coders.normaliser import Normaliser


@torch.no_grad()
def fold_norm(coder: Coder, normaliser: Normaliser) -> Coder:
    """A coder for raw rows, in float32, with the reconstruction of `coder` on normalised ones."""
    w = {name: tensor.double() for name, tensor in coder.tensors().items()}
    s_in, s_out = normaliser.scale_in, normaliser.scale_out
    if coder.config.pre_encoder_bias:
        w["b_enc"] = w["b_enc"] - w["W_enc"] @ w["b_dec"]
    w["b_enc"] /= s_in
    w["W_dec"] *= s_in / s_out
    w["b_dec"] /= s_out
    changes: dict[str, object] = {"pre_encoder_bias": False}
    if isinstance(coder.config, JumpReLUConfig):
        w["threshold"] /= s_in
        changes |= {"bandwidth": coder.config.bandwidth / s_in, "threshold_init": coder.config.threshold_init / s_in}
    if s_in != s_out:
        changes["decoder_norm"] = "free"
    folded = coders.build(coder.config.replace(**changes)).to(coder.W_enc.device)
    return folded.load_tensors({name: tensor.float() for name, tensor in w.items()})
