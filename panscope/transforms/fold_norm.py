"""Fold the normaliser and the pre-encoder bias into the weights, so that the coder works on raw activations.

With s_in, s_out the normaliser's factors (Gemma Scope appendix A writes C = 1/s; Llama Scope section 3.3.3, S_in and
S_out):  b_enc' = (b_enc - W_enc b_dec) / s_in,  threshold' = threshold / s_in,  W_dec' = W_dec s_in / s_out,
b_dec' = b_dec / s_out.  W_enc stays, so codes come out in raw units: f' = f / s_in. ReLU, TopK, JumpReLU and the gate
commute with a positive factor, so reconstructions do not change. Where every site of a crosscoder has a factor of its
own, s_in is their mean and what is left over goes into the columns of W_enc; that changes decoder norms unevenly, so
TopK that ranks by them is brought to a unit decoder before and ranks by value after. A normaliser that differs from row
to row cannot be folded and stays beside the coder; the pre-encoder bias is folded all the same.

Shape letters: F latents, D input width, E output width.
"""

import torch
from torch import Tensor

from panscope import coders
from panscope.coders.base import Coder
from panscope.coders.batchtopk import BatchTopKConfig
from panscope.coders.jumprelu import JumpReLUConfig
from panscope.coders.normaliser import Normaliser
from panscope.coders.topk import TopKConfig
from panscope.transforms.unit_decoder import unit_decoder


@torch.no_grad()
def fold_norm(coder: Coder, normaliser: Normaliser) -> Coder:
    """A coder for raw rows, in float32, with the reconstruction of `coder` on normalised ones.

    A BatchTopK coder must have become JumpReLU before: its running threshold is a number of this space.
    """
    assert not isinstance(coder.config, BatchTopKConfig), "turn BatchTopK into JumpReLU first"
    if normaliser.parts and isinstance(coder.config, TopKConfig) and coder.config.selection == "decoder_norm":
        coder = unit_decoder(coder)
    w = {name: tensor.double() for name, tensor in coder.tensors().items()}
    if coder.config.pre_encoder_bias:
        _absorb(w, -(w["W_enc"] @ w["b_dec"]))
    columns_in = _columns(normaliser, normaliser.scale_in).to(coder.W_enc.device)
    columns_out = _columns(normaliser, normaliser.scale_out).to(coder.W_enc.device)
    s_in = float(columns_in.mean())
    for name in coder.in_code_units:
        w[name] /= s_in
    w["W_enc"] *= columns_in / s_in
    w["W_dec"] *= s_in / columns_out
    w["b_dec"] /= columns_out
    if "W_skip" in w:
        w["W_skip"] *= columns_in / columns_out.expand(len(w["W_skip"]))[:, None]
    folded = coders.build(coder.config.replace(**_changes(coder, normaliser, s_in))).to(coder.W_enc.device)
    return folded.load_tensors({name: tensor.float() for name, tensor in w.items()})


def _absorb(w: dict[str, Tensor], shift: Tensor) -> None:
    """Add `shift` [F] to what W_enc x gives: to every bias that is added to it."""
    w["b_enc"] = w["b_enc"] + shift
    if "r_mag" in w:
        w["b_mag"] = w["b_mag"] + w["r_mag"].exp() * shift


def _columns(normaliser: Normaliser, scale: float) -> Tensor:
    """[1] or, of a crosscoder, [D] float64."""
    return torch.as_tensor(normaliser.factors(scale), dtype=torch.float64).reshape(-1)


def _changes(coder: Coder, normaliser: Normaliser, s_in: float) -> dict[str, object]:
    """What the folded coder's configuration says differently."""
    changes: dict[str, object] = {"pre_encoder_bias": False, "encoder_bias": True}
    if isinstance(coder.config, JumpReLUConfig):
        changes |= {"bandwidth": coder.config.bandwidth / s_in, "threshold_init": coder.config.threshold_init / s_in}
    if normaliser.parts or normaliser.scale_in != normaliser.scale_out:
        changes["decoder_norm"] = "free"
    return changes
