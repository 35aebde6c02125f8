"""Llama Scope v1: hyperparams.json and checkpoints/final.safetensors, in the units of normalised activations.

The stored weights are those of training: activations are multiplied by s_in = sqrt(D) / (their mean norm) before the
encoder, and predictions are divided by s_out after the decoder. The single threshold of all latents is in raw units,
and is compared with the pre-activation times the norm of the decoder vector if `sparsity_include_decoder_norm` is true.
The reader folds all of this into the weights, as the authors' loader did and SAELens' does not: b_enc / s_in,
b_dec / s_out, W_dec s_in / s_out, then unit decoder vectors (He et al. 2024, section 3.3). The writer sets both norms
to sqrt(D), so that nothing remains to be folded and SAELens' loader is also correct.

Shape letters: D input width, E output width, F latents.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panscope.coders.base import Coder
from panscope.coders.wiring import Wiring
from panscope.formats.base import Format, ImportedCoder, ImportOptions
from panscope.formats.shaping import resolve_k
from panscope.formats.site_names import exported_names, lens_name, site_of_lens_name
from panscope.formats.untrusted import read_json, read_safetensors
from panscope.formats.weights import (
    AS_JUMPRELU,
    as_jumprelu,
    build_coder,
    resolve_wiring,
    threshold_of,
    weight_sizes,
    wired_coder,
)
from panscope.storage.sealed import write_json
from panscope.storage.tensors import write_tensors
from panscope.types import UserError

_CONFIG, _MODEL, _WEIGHTS = "hyperparams.json", "lm_config.json", Path("checkpoints/final.safetensors")
_DIMS = {"encoder.weight": "FD", "encoder.bias": "F", "decoder.weight": "EF", "decoder.bias": "E"}
_NORM = "dataset_average_activation_norm"
_LLAMA = "meta-llama/Llama-3.1-8B"
_TOLERANCE = 1e-6
"""Thresholds with a smaller relative difference than this count as equal."""


def _detect(path: Path) -> bool:
    return (path / _CONFIG).is_file() and (path / _WEIGHTS).is_file()


def _files(path: Path) -> list[Path]:
    return [path / _CONFIG, path / _MODEL, path / _WEIGHTS]


def _read(path: Path, options: ImportOptions) -> ImportedCoder:
    where = path / _CONFIG
    config = read_json(where)
    _check(where, config)
    read = read_safetensors(path / _WEIGHTS)
    optional = "" if config.get("use_decoder_bias", True) else "decoder.bias"
    sizes = weight_sizes(path / _WEIGHTS, read, _DIMS, optional=optional)
    for name, letter in (("d_model", "D"), ("d_sae", "F")):
        if config.get(name, sizes[letter]) != sizes[letter]:
            raise UserError(f"{str(where)!r}: {name} is {config[name]!r}, the tensors have {sizes[letter]}")
    tensors = {
        "W_enc": read["encoder.weight"].double(),
        "b_enc": read["encoder.bias"].double(),
        "W_dec": read["decoder.weight"].T.double(),
        "b_dec": read.get("decoder.bias", torch.zeros(sizes["E"])).double(),
    }
    s_in, s_out = _factors(where, config, sizes)
    if config.get("apply_decoder_bias_to_pre_encoder") and (s_in != s_out or sizes["D"] != sizes["E"]):
        raise UserError(
            f"{str(where)!r}: apply_decoder_bias_to_pre_encoder is true, but inputs and outputs have different norms"
        )
    _fold(tensors, s_in, s_out, config)
    wiring = _wiring(where, options, config)
    model = options.model or config.get("model_name") or _model(path)
    about = {"format": "llama_scope", "source": str(path), "model": model, "hyperparams": config}
    return ImportedCoder(wired_coder(where, wiring, _coder(where, tensors, config, options)), about)


def _check(where: Path, config: dict[str, Any]) -> None:
    """Raise UserError for settings of v1 files that Panscope does not support, and for invalid ones."""
    if config.get("use_glu_encoder"):
        raise UserError(f"{str(where)!r}: use_glu_encoder is true, but Panscope has no such encoder")
    if config.get("norm_activation", "dataset-wise") not in ("dataset-wise", "inference", "no-norm"):
        raise UserError(
            f"{str(where)!r}: norm_activation is {config['norm_activation']!r}, expected 'dataset-wise', "
            "'inference' or 'no-norm', which can be folded into the weights"
        )
    for name in ("sparsity_include_decoder_norm", "use_decoder_bias", "apply_decoder_bias_to_pre_encoder"):
        if not isinstance(config.get(name, False), bool):
            raise UserError(f"{str(where)!r}: {name} is {config[name]!r}: expected true or false")


def _wiring(where: Path, options: ImportOptions, config: dict[str, Any]) -> Wiring:
    """The wiring; an SAE states the same hook point twice, so that a site from the user's options replaces both."""
    points = [config.get("hook_point_in"), config.get("hook_point_out")]
    if points[1] == points[0]:
        points[1] = None
    reads, predicts = (site_of_lens_name(point) if isinstance(point, str) else None for point in points)
    if points[1] is not None and predicts is None and options.predicts is None:
        raise UserError(
            f"{str(where)!r} predicts {points[1]!r}, which is not a Panscope site: name the predicted site with "
            "--predicts"
        )
    return resolve_wiring(where, options, reads, predicts, points[0])


def _model(path: Path) -> str | None:
    """The model in lm_config.json, or else in the name of the published repository."""
    found = read_json(path / _MODEL).get("model_name") if (path / _MODEL).is_file() else None
    if isinstance(found, str):
        return found
    return _LLAMA if "Llama3_1-8B-Base" in str(path.absolute()) else None


def _factors(where: Path, config: dict[str, Any], sizes: dict[str, int]) -> tuple[float, float]:
    """The factor that rows are multiplied by before the encoder, and the divisor of predictions: s_in and s_out."""
    if config.get("norm_activation", "dataset-wise") != "dataset-wise":
        return 1.0, 1.0
    norms = config.get(_NORM)
    found = [norms.get(end) for end in ("in", "out")] if isinstance(norms, dict) else []
    valid = [float(norm) for norm in found if isinstance(norm, int | float) and 0 < norm < math.inf]
    if len(valid) != 2:
        raise UserError(f"{str(where)!r}: {_NORM} is {norms!r}: expected two numbers above 0, 'in' and 'out'")
    return math.sqrt(sizes["D"]) / valid[0], math.sqrt(sizes["E"]) / valid[1]


def _fold(w: dict[str, Tensor], s_in: float, s_out: float, config: dict[str, Any]) -> None:
    """Fold the factors into the weights `w`, so that inputs, predictions and codes are in raw units."""
    if config.get("apply_decoder_bias_to_pre_encoder"):
        w["b_enc"] -= w["W_enc"] @ w["b_dec"]
    w["b_enc"] /= s_in
    w["b_dec"] /= s_out
    w["W_dec"] = w["W_dec"] * (s_in / s_out)
    if config.get("sparsity_include_decoder_norm"):
        norms = w["W_dec"].norm(dim=1)
        w["W_dec"] /= torch.where(norms > 0, norms, 1.0)[:, None]
        w["W_enc"] *= norms[:, None]
        w["b_enc"] *= norms


def _coder(where: Path, w: dict[str, Tensor], config: dict[str, Any], options: ImportOptions) -> Coder:
    """JumpReLU with the single threshold; if that is 0, the architecture named by `act_fn`."""
    tensors = {name: tensor.float() for name, tensor in w.items()}
    threshold, act = config.get("jump_relu_threshold", 0), config.get("act_fn", "jumprelu")
    if not isinstance(threshold, int | float) or not 0 <= threshold < math.inf:
        raise UserError(f"{str(where)!r}: jump_relu_threshold is {threshold!r}: expected a number, 0 or above")
    if act not in ("jumprelu", "topk", "relu"):
        raise UserError(f"{str(where)!r}: act_fn is {act!r}: expected 'jumprelu', 'topk' or 'relu'")
    if act == "topk" and threshold == 0:
        return build_coder(where, "topk", tensors, sparsity=resolve_k(where, options.k, config.get("top_k")))
    if act == "relu":
        return build_coder(where, "relu", tensors)
    tensors["threshold"] = torch.full_like(tensors["b_enc"], threshold)
    return build_coder(where, "jumprelu", tensors)


def _write(foreign: ImportedCoder, folder: Path) -> list[Path]:
    coder = as_jumprelu(foreign.wired, "llama_scope")
    if coder.config.skip:
        raise UserError("llama_scope cannot represent a skip connection: write saelens instead")
    if coder.config.d_in != coder.config.d_out:
        raise UserError("llama_scope has a single width for inputs and outputs: write saelens instead")
    thresholds = threshold_of(coder)
    if thresholds.max() - thresholds.min() > _TOLERANCE * thresholds.max():
        raise UserError("llama_scope has one threshold for all latents, this coder has many: write saelens instead")
    w, wiring = coder.tensors(), foreign.wired.wiring
    tensors = {
        "encoder.weight": w["W_enc"],
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["W_dec"].T.contiguous(),
        "decoder.bias": w["b_dec"],
    }
    d = coder.config.d_in
    config = {
        "hook_point_in": lens_name(wiring.reads[0]),
        "hook_point_out": lens_name(wiring.predicts[0]),
        "d_model": d,
        "d_sae": coder.config.width,
        "expansion_factor": coder.config.width / d,
        "act_fn": "jumprelu",
        "jump_relu_threshold": float(thresholds.max()),
        "norm_activation": "dataset-wise",
        _NORM: {"in": math.sqrt(d), "out": math.sqrt(d)},
        "sparsity_include_decoder_norm": False,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "use_glu_encoder": False,
        "strict_loading": True,
        **exported_names(foreign),
    }
    write_tensors(folder / _WEIGHTS, tensors)
    write_json(folder / _CONFIG, config)
    write_json(folder / _MODEL, {"model_name": config["model_name"]})
    return [folder / _CONFIG, folder / _MODEL, folder / _WEIGHTS]


LLAMA_SCOPE = Format(
    name="llama_scope",
    description="Llama Scope v1: hyperparams.json and checkpoints",
    imports=("jumprelu", "topk", "relu"),
    exports=AS_JUMPRELU,
    needs="",
    detect=_detect,
    read=_read,
    write=_write,
    files=_files,
)
