"""SAELens' folders: cfg.json and sae_weights.safetensors (read: versions 3 to 6; written: as 6.54 reads them).

Its encoders are [D, F] and its decoders [F, E]. What its loader ignores is refused here: a scale factor for activations
that was never folded in (`expected_average_only_in`), and whitening. Its checkpoints of BatchTopK have a running
threshold in place of thresholds; they are read as SAELens itself publishes them, as JumpReLU.

`layer_norm` is our `standardise`, `constant_norm_rescale` our `token_norm`. Its transcoders never undo a normaliser,
which ours would, so those are refused.

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
"""The version whose reader the written files are proven with."""

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
"""Our architecture for each of theirs, and the shapes of its tensors."""
_WRITTEN = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}
_NORMALISERS = {"none": "none", "layer_norm": "standardise", "constant_norm_rescale": "token_norm"}
_SCALED = "expected_average_only_in"
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
_TRAINING = ("batchtopk", "matryoshka_batchtopk")
_CROSSING = {"relu": "", "jumprelu": "jumprelu_"}
"""Our architectures that it has transcoders of, and what their names begin with."""
_LEAST_NORM = 1e-8
_CARRIED = ("context_size", "prepend_bos", "dataset_path", "neuronpedia_id", "l0")
"""What SAELens asks of `metadata` beside the names, where it is known."""


def _detect(path: Path) -> bool:
    folder = path.parent if path.name in (_CONFIG, _WEIGHTS) else path
    return (folder / _CONFIG).is_file() and (folder / _WEIGHTS).is_file()


def _read(path: Path, options: ImportOptions) -> ImportedCoder:
    folder = path.parent if path.name in (_CONFIG, _WEIGHTS) else path
    where = folder / _CONFIG
    config = _modern(where, read_json(where))
    theirs = config.get("architecture")
    if not isinstance(theirs, str) or theirs not in _READ:
        raise UserError(f"{str(where)!r}: architecture {theirs!r} is not read: it must be one of {', '.join(_READ)}")
    normaliser = _normaliser(where, config, theirs)
    tensors = _tensors(folder / _WEIGHTS, theirs, config)
    if config.get("normalize_activations") == _SCALED:
        _fold_scale(tensors, _scale(folder))
    if theirs in _TRAINING:
        _fold_running(where, tensors, config)
    fields: dict[str, Any] = {"pre_encoder_bias": _takes_bias_off(where, config, theirs)}
    ours = _READ[theirs][0]
    if ours == "topk":
        by_norm = _flag(where, config, "rescale_acts_by_decoder_norm", default=False)
        fields |= {
            "sparsity": resolve_k(where, options.k, config.get("k")),
            "selection": "decoder_norm" if by_norm else "value",
        }
    metadata = config["metadata"]
    options = with_exported(options, metadata, where)
    wiring, paths = _wiring(where, options, metadata, theirs)
    _check_heads(where, config, wiring)
    wired = wired_coder(folder, wiring, build_coder(folder / _WEIGHTS, ours, tensors, **fields), normaliser)
    return ImportedCoder(wired, _about(folder, options, metadata, theirs) | paths)


def _modern(where: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as version 6 writes it: before, everything stood side by side.

    Raises UserError for an activation that SAELens 6 would read as ReLU.
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
        raise UserError(f"{str(where)!r}: the activation is {activation!r}, which is not read: it must be relu or topk")
    if activation == "topk":
        old |= {"architecture": "topk"} | (
            {"k": arguments["k"]} if isinstance(arguments, dict) and "k" in arguments else {}
        )
    normalises = old.get("normalize_activations")
    if isinstance(normalises, bool):
        old["normalize_activations"] = _SCALED if normalises else "none"
    return old


def _normaliser(where: Path, config: dict[str, Any], theirs: str) -> str:
    """Our kind of normaliser for what the configuration asks; raises UserError where there is none."""
    stated = config.get("normalize_activations") or "none"
    if stated == _SCALED:
        return "none"
    if not isinstance(stated, str) or stated not in _NORMALISERS:
        raise UserError(
            f"{str(where)!r}: normalize_activations is {stated!r}, which is not read: use {', '.join(_NORMALISERS)}; "
            "fold it into the weights with SAELens and save again"
        )
    if stated != "none" and "transcoder" in theirs:
        raise UserError(
            f"{str(where)!r}: normalize_activations is {stated!r} and the architecture {theirs!r}: SAELens normalises "
            "what a transcoder reads and not what it predicts, which no normaliser of ours does"
        )
    return _NORMALISERS[stated]


def _tensors(path: Path, theirs: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """The weights, laid out as ours."""
    tensors = read_safetensors(path)
    scaling = tensors.pop("scaling_factor", None)
    if scaling is not None and not scaling.eq(1).all():
        raise UserError(f"{str(path)!r} holds a scaling_factor other than 1: save it with SAELens 6 first")
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    sizes = weight_sizes(path, tensors, _READ[theirs][1])
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
    """The factor that activations are to be multiplied by, which a checkpoint has beside it."""
    path = folder / _SCALER
    scale = read_json(path).get("scaling_factor") if path.is_file() else None
    if not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise UserError(
            f"{str(folder / _CONFIG)!r}: normalize_activations is {_SCALED!r}, but no file beside it says by which "
            f"factor: put {_SCALER} there, or fold the factor into the weights with SAELens and save again"
        )
    return float(scale)


def _fold_scale(tensors: dict[str, Tensor], scale: float) -> None:
    """As SAELens folds it: codes stay those of scaled activations."""
    for name in ("W_dec", "b_dec"):
        tensors[name] /= scale
    tensors["W_enc"] *= scale


def _fold_running(where: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """A checkpoint's running threshold as thresholds [F], its decoder norms folded in, as SAELens publishes it."""
    running = tensors.pop("topk_threshold")
    by_norm = _flag(where, config, "rescale_acts_by_decoder_norm", default=True)
    if by_norm:
        norms = tensors["W_dec"].norm(dim=1).clamp_min(_LEAST_NORM)
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


def _takes_bias_off(where: Path, config: dict[str, Any], theirs: str) -> bool:
    """Whether b_dec is taken off the input; raises UserError for a transcoder that says so, as SAELens does."""
    found = _flag(where, config, "apply_b_dec_to_input", default=True)
    if found and "transcoder" in theirs:
        raise UserError(
            f"{str(where)!r}: apply_b_dec_to_input is true, or missing, which is the same, but the architecture "
            f"{theirs!r} takes no bias off its input: set it to false if the coder was trained so"
        )
    return found


def _check_heads(where: Path, config: dict[str, Any], wiring: Wiring) -> None:
    """Raise UserError where the file says that rows are heads side by side and the sites' are not."""
    reshape = config.get("reshape_activations") or "none"
    if reshape not in ("none", "hook_z"):
        raise UserError(f"{str(where)!r}: reshape_activations is {reshape!r}: expected 'none' or 'hook_z'")
    if reshape == "hook_z" and {site.kind for site in wiring.reads} != {"attn_z"}:
        sites = " ".join(map(str, wiring.reads))
        raise UserError(
            f"{str(where)!r}: reshape_activations is 'hook_z', for rows of heads, but the coder reads {sites}: "
            "name the right site, such as L03.attn_z"
        )


def _wiring(
    where: Path, options: ImportOptions, metadata: dict[str, Any], theirs: str
) -> tuple[Wiring, dict[str, Any]]:
    """The sites: what the user says, or we ourselves, else the hooks' names; and the file's own module paths."""
    if metadata.get("hook_head_index") is not None:
        raise UserError(f"{str(where)!r}: hook_head_index is set, but single heads are no sites of ours")
    reads, predicts = stated_sites(metadata, options.model)
    out = metadata.get("hook_name_out")
    if out is not None and predicts is None and options.predicts is None:
        raise UserError(
            f"{str(where)!r} predicts {out!r}, which is no site of ours: name the site it predicts by --predicts"
        )
    if "transcoder" in theirs and not (predicts or options.predicts or isinstance(metadata.get("panscope"), dict)):
        raise UserError(f"{str(where)!r} does not say what it predicts: name that site, such as L03.mlp_out")
    wiring = resolve_wiring(where, options, reads, predicts, metadata.get("hook_name"), several=True)
    paths = metadata.get("hf_hook_name"), metadata.get("hf_hook_name_out")
    return wiring, stated_module_paths(wiring, (reads, paths[0]), (predicts, paths[1]))


def _about(folder: Path, options: ImportOptions, metadata: dict[str, Any], theirs: str) -> dict[str, Any]:
    """Where it comes from: what we once wrote of that, and all that SAELens wrote."""
    own = metadata.get("panscope")
    own = own.get("about") if isinstance(own, dict) else None
    said = {key: value for key, value in metadata.items() if key != "panscope"}
    return {
        **(own if isinstance(own, dict) else {}),
        "format": "saelens",
        "source": str(folder),
        "model": options.model or metadata.get("model_name"),
        "architecture": theirs,
        "metadata": said,
    }


def _write(foreign: ImportedCoder, folder: Path) -> list[Path]:
    wired = folded(foreign.wired, "saelens", ("sae", "transcoder", "multilayer"))
    theirs, coder = _as_theirs(wired)
    tensors = coder.tensors()
    tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    if "threshold" in tensors:
        tensors["threshold"] = threshold_of(coder)
    if theirs == "gated":
        tensors["b_gate"] = tensors.pop("b_enc")
    by_heads = wired.wiring.reads[0].kind == "attn_z" and "transcoder" not in theirs
    config: dict[str, Any] = {
        "architecture": theirs,
        "d_in": coder.config.d_in,
        "d_sae": coder.config.width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": coder.config.pre_encoder_bias,
        "normalize_activations": {ours: name for name, ours in _NORMALISERS.items()}[wired.normaliser.kind],
        "reshape_activations": "hook_z" if by_heads else "none",
        "metadata": _metadata(foreign),
    }
    if "transcoder" in theirs:
        config["d_out"] = coder.config.d_out
    if isinstance(coder.config, TopKConfig):
        config |= {"k": int(coder.config.sparsity), "rescale_acts_by_decoder_norm": coder.config.by_norm}
    write_tensors(folder / _WEIGHTS, tensors)
    write_json(folder / _CONFIG, config)
    return [folder / _CONFIG, folder / _WEIGHTS]


def _as_theirs(wired: WiredCoder) -> tuple[str, Coder]:
    """Their architecture for a finished coder, and the coder as that holds it."""
    coder, architecture = wired.coder, wired.coder.config.architecture
    is_transcoder = wired.wiring.kind.predicts_other
    if wired.normaliser.kind in PER_ROW and (is_transcoder or coder.config.skip):
        raise UserError(
            f"the normaliser is {wired.normaliser.kind!r}, but SAELens undoes none after a transcoder or a skip: "
            "train with a normaliser that folds into the weights, such as 'sqrt_d'"
        )
    if coder.config.skip or coder.config.d_in != coder.config.d_out or (is_transcoder and architecture in _CROSSING):
        if architecture not in _CROSSING:
            raise UserError(
                f"SAELens has no {architecture!r} transcoder between widths that differ or with a skip: "
                f"{jumprelu_advice(architecture)}train it as jumprelu or relu"
            )
        skip = "skip_" if coder.config.skip else ""
        return f"{_CROSSING[architecture]}{skip}transcoder", without_pre_bias(coder)
    return _WRITTEN[architecture], coder


def _metadata(foreign: ImportedCoder) -> dict[str, Any]:
    """What SAELens knew of the coder, the names of its sites, and where it comes from."""
    about = dict(foreign.about)
    before = about.get("metadata")
    known = {name: about[name] for name in _CARRIED if name in about}
    return {
        **(before if isinstance(before, dict) else {}),
        **known,
        **exported_names(foreign),
        "sae_lens_version": _VERSION,
        "sae_lens_training_version": None,
    }


SAELENS = Format(
    name="saelens",
    description="SAELens: cfg.json and sae_weights.safetensors",
    imports=tuple(dict.fromkeys(ours for ours, _ in _READ.values())),
    exports=(*_WRITTEN, "batchtopk", "matryoshka"),
    needs="",
    detect=_detect,
    read=_read,
    write=_write,
)
