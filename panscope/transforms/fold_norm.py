"""Fold the normaliser and the pre-encoder bias into the weights, so that the coder works on raw activations.

With s_in, s_out the normaliser's factors (Gemma Scope appendix A writes C = 1/s; Llama Scope section 3.3.3, S_in and
S_out):  b_enc' = (b_enc - W_enc b_dec) / s_in,  threshold' = threshold / s_in,  W_dec' = W_dec s_in / s_out,
b_dec' = b_dec / s_out.  W_enc is unchanged, so codes are in raw units: f' = f / s_in. ReLU, TopK, JumpReLU and the gate
commute with a positive factor, so reconstructions do not change. If the sites of a crosscoder have different factors,
s_in is their mean and the remaining factors are folded into the columns of W_enc; as this changes decoder norms
unevenly, TopK that ranks by decoder norm is first converted to unit decoder vectors, and then ranks by value. A
normaliser that differs from row to row cannot be folded and is kept; the pre-encoder bias is folded in any case.

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
    """A coder for raw rows, in float32, with the same reconstructions as `coder` has for normalised rows.

    A BatchTopK coder must be converted to JumpReLU first, as its running threshold is in normalised units.
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
    """Add `shift` [F] to W_enc x, by adding it to every bias of the encoder."""
    w["b_enc"] = w["b_enc"] + shift
    if "r_mag" in w:
        w["b_mag"] = w["b_mag"] + w["r_mag"].exp() * shift


def _columns(normaliser: Normaliser, scale: float) -> Tensor:
    """The factors of the columns in float64: [1] or, for a crosscoder, [D]."""
    return torch.as_tensor(normaliser.factors(scale), dtype=torch.float64).reshape(-1)


def _changes(coder: Coder, normaliser: Normaliser, s_in: float) -> dict[str, object]:
    """The fields of the configuration that differ in the folded coder."""
    changes: dict[str, object] = {"pre_encoder_bias": False, "encoder_bias": True}
    if isinstance(coder.config, JumpReLUConfig):
        changes |= {"bandwidth": coder.config.bandwidth / s_in, "threshold_init": coder.config.threshold_init / s_in}
    if normaliser.parts or normaliser.scale_in != normaliser.scale_out:
        changes["decoder_norm"] = "free"
    return changes
