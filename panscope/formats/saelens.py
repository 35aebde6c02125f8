"""SAELens folders: cfg.json and sae_weights.safetensors (versions 3 to 6 can be read; files are written for 6.54).

Encoders are stored as [D, F] and decoders as [F, E]. An activation scale that was never folded into the weights
(`expected_average_only_in`), which SAELens' loader ignores, is folded in here; whitening is rejected. BatchTopK
checkpoints have a running threshold instead of thresholds; they are read as JumpReLU, as SAELens publishes them.

SAELens' `layer_norm` corresponds to Panscope's `standardise`, and `constant_norm_rescale` to `token_norm`. SAELens
transcoders with a normaliser are rejected: SAELens does not denormalise their outputs, whereas Panscope would.

Shape letters: D input width, E output width, F latents.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from panscope.coders.base import Coder
from panscope.coders.normaliser import PER_ROW
from panscope.coders.topk import TopKConfig
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.formats.base import Format, ImportedCoder, ImportOptions
from panscope.formats.shaping import resolve_k
from panscope.formats.site_names import exported_names, stated_module_paths, stated_sites, with_exported
from panscope.formats.untrusted import read_json, read_safetensors
from panscope.formats.weights import (
    build_coder,
    folded,
    jumprelu_advice,
    resolve_wiring,
    threshold_of,
    weight_sizes,
    wired_coder,
    without_pre_bias,
)
from panscope.storage.sealed import write_json
from panscope.storage.tensors import write_tensors
from panscope.types import UserError

_CONFIG, _WEIGHTS, _SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
_VERSION = "6.54.12"
"""The version whose reader the exported files are tested with."""

_FOUR = {"W_enc": "DF", "b_enc": "F", "W_dec": "FE", "b_dec": "E"}
_SQUARE = {"W_enc": "DF", "b_enc": "F", "W_dec": "FD", "b_dec": "D"}
_JUMP, _SKIP = {"threshold": "F"}, {"W_skip": "ED"}
_TRAINED = _SQUARE | {"topk_threshold": ""}
_READ: dict[str, tuple[str, dict[str, str]]] = {
    "standard": ("relu", _SQUARE),
    "topk": ("topk", _SQUARE),
    "jumprelu": ("jumprelu", _SQUARE | _JUMP),
    "gated": (
        "gated",
        {"W_enc": "DF", "b_gate": "F", "r_mag": "F", "b_mag": "F", "W_dec": "FD", "b_dec": "D"},
    ),
    "batchtopk": ("jumprelu", _TRAINED),
    "matryoshka_batchtopk": ("jumprelu", _TRAINED),
    "transcoder": ("relu", _FOUR),
    "skip_transcoder": ("relu", _FOUR | _SKIP),
    "jumprelu_transcoder": ("jumprelu", _FOUR | _JUMP),
    "jumprelu_skip_transcoder": ("jumprelu", _FOUR | _JUMP | _SKIP),
}
"""By SAELens architecture: the Panscope architecture and the shapes of its tensors."""
_WRITTEN = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}
_NORMALISERS = {"none": "none", "layer_norm": "standardise", "constant_norm_rescale": "token_norm"}
_SCALED = "expected_average_only_in"
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
_TRAINING = ("batchtopk", "matryoshka_batchtopk")
_TRANSCODERS = {"relu": "", "jumprelu": "jumprelu_"}
"""Panscope architectures for which SAELens has transcoders, with the prefix of their names."""
_MIN_NORM = 1e-8
_METADATA = ("context_size", "prepend_bos", "dataset_path", "neuronpedia_id", "l0")
"""Further entries of SAELens' `metadata`, written if known."""


def _detect(path: Path) -> bool:
    folder = _folder(path)
    return (folder / _CONFIG).is_file() and (folder / _WEIGHTS).is_file()


def _files(path: Path) -> list[Path]:
    return [_folder(path) / name for name in (_CONFIG, _WEIGHTS, _SCALER)]


def _folder(path: Path) -> Path:
    return path.parent if path.name in (_CONFIG, _WEIGHTS) else path


def _read(path: Path, options: ImportOptions) -> ImportedCoder:
    folder = _folder(path)
    where = folder / _CONFIG
    config = _upgraded(where, read_json(where))
    saelens_arch = config.get("architecture")
    if not isinstance(saelens_arch, str) or saelens_arch not in _READ:
        raise UserError(
            f"{str(where)!r}: architecture {saelens_arch!r} is unsupported: it must be one of {', '.join(_READ)}"
        )
    normaliser = _normaliser(where, config, saelens_arch)
    tensors = _tensors(folder / _WEIGHTS, saelens_arch, config)
    if config.get("normalize_activations") == _SCALED:
        _fold_scale(tensors, _scale(folder))
    if saelens_arch in _TRAINING:
        _fold_running_threshold(where, tensors, config)
    fields: dict[str, Any] = {"pre_encoder_bias": _subtracts_bias(where, config, saelens_arch)}
    architecture = _READ[saelens_arch][0]
    if architecture == "topk":
        by_norm = _flag(where, config, "rescale_acts_by_decoder_norm", default=False)
        fields |= {
            "sparsity": resolve_k(where, options.k, config.get("k")),
            "selection": "decoder_norm" if by_norm else "value",
        }
    metadata = config["metadata"]
    options = with_exported(options, metadata, where)
    wiring, paths = _wiring(where, options, metadata, saelens_arch)
    _check_heads(where, config, wiring)
    wired = wired_coder(folder, wiring, build_coder(folder / _WEIGHTS, architecture, tensors, **fields), normaliser)
    return ImportedCoder(wired, _about(folder, options, metadata, saelens_arch) | paths)


def _upgraded(where: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration in the layout of version 6; earlier versions have no `metadata` table.

    Raises UserError for an activation function that SAELens 6 would silently replace by ReLU.
    """
    metadata = config.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    version = metadata.get("sae_lens_version") or config.get("sae_lens_version")
    if isinstance(version, str) and re.match(r"([6-9]|\d\d)\.", version):
        return config | {"metadata": metadata}
    old = {_RENAMED.get(key, key): value for key, value in config.items()}
    old = {"architecture": "standard", "apply_b_dec_to_input": True} | old | {"metadata": old}
    activation, arguments = old.get("activation_fn") or "relu", old.get("activation_fn_kwargs")
    if activation not in ("relu", "topk"):
        raise UserError(
            f"{str(where)!r}: the activation is {activation!r}, which is unsupported: it must be relu or topk"
        )
    if activation == "topk":
        old |= {"architecture": "topk"} | (
            {"k": arguments["k"]} if isinstance(arguments, dict) and "k" in arguments else {}
        )
    normalises = old.get("normalize_activations")
    if isinstance(normalises, bool):
        old["normalize_activations"] = _SCALED if normalises else "none"
    return old


def _normaliser(where: Path, config: dict[str, Any], saelens_arch: str) -> str:
    """The kind of normaliser that corresponds to the configuration; raises UserError if there is none."""
    stated = config.get("normalize_activations") or "none"
    if stated == _SCALED:
        return "none"
    if not isinstance(stated, str) or stated not in _NORMALISERS:
        raise UserError(
            f"{str(where)!r}: normalize_activations is {stated!r}, expected one of {', '.join(_NORMALISERS)}; "
            "fold it into the weights with SAELens and save again"
        )
    if stated != "none" and "transcoder" in saelens_arch:
        raise UserError(
            f"{str(where)!r}: normalize_activations is {stated!r} and the architecture {saelens_arch!r}: SAELens "
            "normalises the inputs of a transcoder but not its outputs, which Panscope does not support"
        )
    return _NORMALISERS[stated]


def _tensors(path: Path, saelens_arch: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """The weights, in Panscope's layout."""
    tensors = read_safetensors(path)
    scaling = tensors.pop("scaling_factor", None)
    if scaling is not None and not scaling.eq(1).all():
        raise UserError(f"{str(path)!r} contains a scaling_factor other than 1: save it with SAELens 6 first")
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    sizes = weight_sizes(path, tensors, _READ[saelens_arch][1])
    for name, letter in (("d_in", "D"), ("d_sae", "F"), ("d_out", "E")):
        if letter in sizes and config.get(name, sizes[letter]) != sizes[letter]:
            raise UserError(
                f"{str(path)!r}: {name} is {config[name]!r} in {_CONFIG}, the tensors have {sizes[letter]}; "
                "take undamaged copies of both"
            )
    tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    if "b_gate" in tensors:
        tensors["b_enc"] = tensors.pop("b_gate")
    return tensors


def _scale(folder: Path) -> float:
    """The factor to multiply activations by, from a separate file in the folder of a checkpoint."""
    path = folder / _SCALER
    scale = read_json(path).get("scaling_factor") if path.is_file() else None
    if not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise UserError(
            f"{str(folder / _CONFIG)!r}: normalize_activations is {_SCALED!r}, but its folder has no {_SCALER} with a "
            "valid scaling_factor: add that file, or fold the factor into the weights with SAELens and save again"
        )
    return float(scale)


def _fold_scale(tensors: dict[str, Tensor], scale: float) -> None:
    """Fold the scale into the weights as SAELens does: codes remain those of the scaled activations."""
    for name in ("W_dec", "b_dec"):
        tensors[name] /= scale
    tensors["W_enc"] *= scale


def _fold_running_threshold(where: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Replace a checkpoint's running threshold by thresholds [F] and fold in decoder norms, as SAELens publishes it."""
    running = tensors.pop("topk_threshold")
    by_norm = _flag(where, config, "rescale_acts_by_decoder_norm", default=True)
    if by_norm:
        norms = tensors["W_dec"].norm(dim=1).clamp_min(_MIN_NORM)
        tensors["W_dec"] /= norms[:, None]
        tensors["W_enc"] *= norms[:, None]
        tensors["b_enc"] *= norms
        if config.get("normalize_activations") == _SCALED:
            running = running / _scale(where.parent)
    tensors["threshold"] = running.expand(len(tensors["W_dec"])).clone()


def _flag(where: Path, config: dict[str, Any], name: str, *, default: bool) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise UserError(f"{str(where)!r}: {name} is {value!r}: expected true or false")
    return value


def _subtracts_bias(where: Path, config: dict[str, Any], saelens_arch: str) -> bool:
    """Whether b_dec is subtracted from the input; raises UserError, as SAELens does, if that is set in a transcoder."""
    found = _flag(where, config, "apply_b_dec_to_input", default=True)
    if found and "transcoder" in saelens_arch:
        raise UserError(
            f"{str(where)!r}: apply_b_dec_to_input is true, or missing, which means true, but the architecture "
            f"{saelens_arch!r} subtracts no bias from its input: set it to false if the coder was trained that way"
        )
    return found


def _check_heads(where: Path, config: dict[str, Any], wiring: Wiring) -> None:
    """Raise UserError if the file says that rows are concatenated heads but the site's rows are not."""
    reshape = config.get("reshape_activations") or "none"
    if reshape not in ("none", "hook_z"):
        raise UserError(f"{str(where)!r}: reshape_activations is {reshape!r}: expected 'none' or 'hook_z'")
    if reshape == "hook_z" and {site.kind for site in wiring.reads} != {"attn_z"}:
        sites = " ".join(map(str, wiring.reads))
        raise UserError(
            f"{str(where)!r}: reshape_activations is 'hook_z', for concatenated heads, but the coder reads {sites}: "
            "name the correct site, such as L03.attn_z"
        )


def _wiring(
    where: Path, options: ImportOptions, metadata: dict[str, Any], saelens_arch: str
) -> tuple[Wiring, dict[str, Any]]:
    """The sites from the user's options, a Panscope export or the hook names; and the module paths in the file."""
    if metadata.get("hook_head_index") is not None:
        raise UserError(f"{str(where)!r}: hook_head_index is set, but Panscope does not support single heads as sites")
    reads, predicts = stated_sites(metadata, options.model)
    out = metadata.get("hook_name_out")
    if out is not None and predicts is None and options.predicts is None:
        raise UserError(
            f"{str(where)!r} predicts {out!r}, which is not a Panscope site: name the predicted site with --predicts"
        )
    if "transcoder" in saelens_arch and not (
        predicts or options.predicts or isinstance(metadata.get("panscope"), dict)
    ):
        raise UserError(
            f"{str(where)!r} does not state which site it predicts: name it with --predicts, such as L03.mlp_out"
        )
    wiring = resolve_wiring(where, options, reads, predicts, metadata.get("hook_name"), several=True)
    paths = metadata.get("hf_hook_name"), metadata.get("hf_hook_name_out")
    return wiring, stated_module_paths(wiring, (reads, paths[0]), (predicts, paths[1]))


def _about(folder: Path, options: ImportOptions, metadata: dict[str, Any], saelens_arch: str) -> dict[str, Any]:
    """The provenance: that of an earlier Panscope export, and all metadata written by SAELens."""
    exported = metadata.get("panscope")
    exported_about = exported.get("about") if isinstance(exported, dict) else None
    return {
        **(exported_about if isinstance(exported_about, dict) else {}),
        "format": "saelens",
        "source": str(folder),
        "model": options.model or metadata.get("model_name"),
        "architecture": saelens_arch,
        "metadata": {key: value for key, value in metadata.items() if key != "panscope"},
    }


def _write(foreign: ImportedCoder, folder: Path) -> list[Path]:
    wired = folded(foreign.wired, "saelens", ("sae", "transcoder", "multilayer"))
    saelens_arch, coder = _to_saelens(wired)
    tensors = coder.tensors()
    tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    if "threshold" in tensors:
        tensors["threshold"] = threshold_of(coder)
    if saelens_arch == "gated":
        tensors["b_gate"] = tensors.pop("b_enc")
    by_heads = wired.wiring.reads[0].kind == "attn_z" and "transcoder" not in saelens_arch
    config: dict[str, Any] = {
        "architecture": saelens_arch,
        "d_in": coder.config.d_in,
        "d_sae": coder.config.width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": coder.config.pre_encoder_bias,
        "normalize_activations": {kind: name for name, kind in _NORMALISERS.items()}[wired.normaliser.kind],
        "reshape_activations": "hook_z" if by_heads else "none",
        "metadata": _metadata(foreign),
    }
    if "transcoder" in saelens_arch:
        config["d_out"] = coder.config.d_out
    if isinstance(coder.config, TopKConfig):
        config |= {"k": int(coder.config.sparsity), "rescale_acts_by_decoder_norm": coder.config.by_norm}
    write_tensors(folder / _WEIGHTS, tensors)
    write_json(folder / _CONFIG, config)
    return [folder / _CONFIG, folder / _WEIGHTS]


def _to_saelens(wired: WiredCoder) -> tuple[str, Coder]:
    """The SAELens architecture for a folded coder, and the coder in the form that this architecture can represent."""
    coder, architecture = wired.coder, wired.coder.config.architecture
    is_transcoder = wired.wiring.kind.predicts_other
    if wired.normaliser.kind in PER_ROW and (is_transcoder or coder.config.skip):
        raise UserError(
            f"the normaliser is {wired.normaliser.kind!r}, but SAELens does not denormalise the outputs of a "
            "transcoder or a skip: train with a normaliser that folds into the weights, such as 'sqrt_d'"
        )
    if coder.config.skip or coder.config.d_in != coder.config.d_out or (is_transcoder and architecture in _TRANSCODERS):
        if architecture not in _TRANSCODERS:
            raise UserError(
                f"SAELens has no {architecture!r} transcoder, skip connection or output of another width: "
                f"{jumprelu_advice(architecture)}train it as jumprelu or relu"
            )
        skip = "skip_" if coder.config.skip else ""
        return f"{_TRANSCODERS[architecture]}{skip}transcoder", without_pre_bias(coder)
    return _WRITTEN[architecture], coder


def _metadata(foreign: ImportedCoder) -> dict[str, Any]:
    """The metadata of an imported SAELens file, the names of the sites, and the provenance."""
    about = dict(foreign.about)
    imported = about.get("metadata")
    known = {name: about[name] for name in _METADATA if name in about}
    return {
        **(imported if isinstance(imported, dict) else {}),
        **known,
        **exported_names(foreign),
        "sae_lens_version": _VERSION,
        "sae_lens_training_version": None,
    }


SAELENS = Format(
    name="saelens",
    description="SAELens: cfg.json and sae_weights.safetensors",
    imports=tuple(dict.fromkeys(architecture for architecture, _ in _READ.values())),
    exports=(*_WRITTEN, "batchtopk", "matryoshka"),
    needs="",
    detect=_detect,
    read=_read,
    write=_write,
    files=_files,
)
