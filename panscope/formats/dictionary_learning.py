"""dictionary_learning: `ae.pt`, a state dict of one of seven classes, with `config.json` in the same folder.

    class                   codes                                       encodes x - b_dec   Panscope architecture
    AutoEncoder             ReLU                                        yes                 relu
    AutoEncoderNew          ReLU                                        no                  relu
    GatedAutoEncoder        gated                                       yes                 gated
    JumpReluAutoEncoder     above a threshold per latent                no                  jumprelu
    AutoEncoderTopK         the K largest                               yes                 topk
    BatchTopKSAE            above one threshold                         yes                 batchtopk
    MatryoshkaBatchTopKSAE  above one threshold, latents in groups      yes                 matryoshka

A threshold of -1 was never set by training; it has no effect, and is written as -1 again. A JumpReLU threshold below 0
is written as 0, since a ReLU follows it. During training, `ae.pt` may be a backup {step, ae, optimizer, config,
norm_factor}: its biases are for rows divided by norm_factor and are rescaled to raw rows here, as the tool does in its
final files. TopK and BatchTopK files have the same tensors and are told apart only by the configuration.

Shape letters: F latents, D width, G groups.
"""

import itertools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panscope.coders.base import Coder
from panscope.coders.batchtopk import BatchTopKCoder
from panscope.coders.wiring import WiredCoder
from panscope.formats.base import Format, ImportedCoder, ImportOptions
from panscope.formats.shaping import centred, check_raw, for_raw_rows, resolve_k, transposed, uncentred, unsupported
from panscope.formats.site_names import exported_names
from panscope.formats.untrusted import read_json, read_pt
from panscope.formats.weights import build_coder, resolve_wiring, threshold_of, weight_sizes
from panscope.storage.atomic import replacing
from panscope.storage.sealed import write_json
from panscope.types import SITE_KINDS, Site, UserError

_WEIGHTS, _CONFIG = "ae.pt", "config.json"
_BACKUP = {"step", "ae", "config"}
_LINEAR = {"encoder.weight": "FD", "decoder.weight": "DF"}
_PLAIN = {"W_enc": "DF", "b_enc": "F", "W_dec": "FD", "b_dec": "D"}
SHAPES: dict[str, dict[str, str]] = {
    "AutoEncoder": _LINEAR | {"encoder.bias": "F", "bias": "D"},
    "AutoEncoderNew": _LINEAR | {"encoder.bias": "F", "decoder.bias": "D"},
    "GatedAutoEncoder": _LINEAR | {"decoder_bias": "D", "r_mag": "F", "gate_bias": "F", "mag_bias": "F"},
    "JumpReluAutoEncoder": _PLAIN | {"threshold": "F"},
    "AutoEncoderTopK": _LINEAR | {"encoder.bias": "F", "b_dec": "D", "k": "", "threshold": ""},
    "BatchTopKSAE": _LINEAR | {"encoder.bias": "F", "b_dec": "D", "k": "", "threshold": ""},
    "MatryoshkaBatchTopKSAE": _PLAIN | {"k": "", "threshold": "", "group_sizes": "G"},
}
"""The tensors of each class."""
_RENAMED = {
    "encoder.weight": "W_enc",
    "decoder.weight": "W_dec",
    "encoder.bias": "b_enc",
    "gate_bias": "b_enc",
    "mag_bias": "b_mag",
    "bias": "b_dec",
    "decoder.bias": "b_dec",
    "decoder_bias": "b_dec",
}
"""Panscope's tensor names, where they differ."""
_ARCHITECTURES = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batchtopk",
    "MatryoshkaBatchTopKSAE": "matryoshka",
}
_UNCENTRED = ("AutoEncoderNew", "JumpReluAutoEncoder")
_TRAINERS = {
    "AutoEncoder": "StandardTrainer",
    "AutoEncoderNew": "StandardTrainerAprilUpdate",
    "GatedAutoEncoder": "GatedSAETrainer",
    "JumpReluAutoEncoder": "JumpReluTrainer",
    "AutoEncoderTopK": "TopKTrainer",
    "BatchTopKSAE": "BatchTopKTrainer",
    "MatryoshkaBatchTopKSAE": "MatryoshkaBatchTopKTrainer",
}
_SIGNED = {"pre_bias", "encoder_bias", "encoder_weights", "decoder_weights"}
"""The tensors of another tool's TopK coder with signed codes, which occurs under the same file names."""
_UNSET = -1.0
_SUBMODULE = re.compile(rf"({'|'.join(SITE_KINDS)})(?:_layer_(\d{{1,4}}))?")


def detect(path: Path) -> bool:
    """Whether this is a folder with ae.pt, or a file with a name such as ae.pt, ae1.pt, ae_1000.pt."""
    if path.is_dir():
        return (path / _WEIGHTS).is_file()
    return path.is_file() and re.fullmatch(r"ae_?\w*\.pt", path.name) is not None


def files(path: Path) -> list[Path]:
    """See `Format`."""
    file = path / _WEIGHTS if path.is_dir() else path
    return [file, *(folder / _CONFIG for folder in _config_folders(file))]


def _config_folders(file: Path) -> tuple[Path, ...]:
    """The folders that may have the configuration: the file's own and, for a checkpoint, the run's."""
    folder = file.absolute().parent
    return (folder, folder.parent) if file.parent.name == "checkpoints" else (folder,)


def read(path: Path, options: ImportOptions) -> ImportedCoder:
    """See `Format`. Also reads the checkpoints of a run, whose configuration is in the parent folder."""
    file = path / _WEIGHTS if path.is_dir() else path
    found, trainer = read_pt(file), _trainer(file)
    norm_factor = 1.0
    if found.keys() >= _BACKUP and isinstance(found["ae"], dict):
        norm_factor = _norm_factor(file, found)
        backup_trainer = found["config"] if isinstance(found["config"], dict) else {}
        trainer, found = {**backup_trainer, **trainer}, found["ae"]
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    kind = _class(file, tensors, trainer)
    optional = "k threshold" if kind == "AutoEncoderTopK" else "k"
    sizes = weight_sizes(file, tensors, SHAPES[kind], optional=optional, counts="k group_sizes")
    scaled = _scaled(tensors, norm_factor)
    fields: dict[str, Any] = {
        "pre_encoder_bias": kind not in _UNCENTRED,
        "sparsity": _sparsity(file, options, kind, tensors, trainer),
    }
    if kind == "MatryoshkaBatchTopKSAE":
        fields["prefixes"] = _prefixes(file, tensors["group_sizes"], sizes["F"])
    coder = build_coder(file, _ARCHITECTURES[kind], _to_panscope(kind, scaled), **fields)
    model = options.model or _text(trainer, "lm_name")
    about = {"format": "dictionary_learning", "source": str(path), "model": model, "dict_class": kind}
    about |= {"trainer": trainer, "norm_factor": norm_factor}
    if "k" in SHAPES[kind]:
        about["threshold"] = float(scaled["threshold"]) if "threshold" in scaled else _UNSET
    return ImportedCoder(
        WiredCoder(resolve_wiring(file, options, _site(trainer), None, trainer.get("submodule_name")), coder), about
    )


def _trainer(file: Path) -> dict[str, Any]:
    """The plain values of the object `trainer` in config.json; {} if there is no such file."""
    for folder in _config_folders(file):
        if (folder / _CONFIG).is_file():
            trainer = read_json(folder / _CONFIG).get("trainer")
            if not isinstance(trainer, dict):
                raise UserError(
                    f"the file {str(folder / _CONFIG)!r} has no object 'trainer', so it is not dictionary_learning's; "
                    "give a folder that its trainSAE wrote"
                )
            return {key: value for key, value in trainer.items() if _is_plain(value)}
    return {}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= 100 and all(isinstance(item, int | float | str) for item in value)
    return value is None or isinstance(value, int | float | str)


def _norm_factor(file: Path, backup: Mapping[str, Any]) -> float:
    """The factor that the rows of a backup were divided by."""
    factor = 1.0 if backup.get("norm_factor") is None else backup["norm_factor"]
    if isinstance(factor, Tensor) and factor.numel() == 1:
        factor = factor.item()
    if not isinstance(factor, int | float) or not (math.isfinite(factor) and factor > 0):
        raise UserError(f"{str(file)!r}: norm_factor is {factor!r}, expected a number above 0; take an undamaged copy")
    return float(factor)


def _class(file: Path, tensors: Mapping[str, Tensor], trainer: Mapping[str, Any]) -> str:
    """The class named in the configuration or, without one, the class that has these tensors."""
    if tensors.keys() == _SIGNED:
        raise UserError(
            f"{str(file)!r} is a TopK coder that keeps the signs of its codes: Panscope's codes are never negative, so "
            "it would be another coder; it is not imported"
        )
    stated = trainer.get("dict_class")
    if stated is not None:
        if not isinstance(stated, str) or stated not in SHAPES:
            raise UserError(f"{str(file)!r} is of class {stated!r}: use one of {', '.join(SHAPES)}")
        return stated
    matches = [kind for kind, shapes in SHAPES.items() if shapes.keys() == tensors.keys()]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(
            f"{str(file)!r} may be {' or '.join(matches)}: add the config.json that states its dict_class to its folder"
        )
    names = ", ".join(sorted(tensors)[:8]) or "none"
    raise UserError(f"{str(file)!r} contains the tensors {names}, which match no class of dictionary_learning")


def _sparsity(
    file: Path, options: ImportOptions, kind: str, tensors: Mapping[str, Tensor], trainer: Mapping[str, Any]
) -> float:
    """K, on which tensors and configuration must agree; or 1 for classes without K, whose penalty is not stated."""
    if "k" not in SHAPES[kind]:
        return 1.0
    stated = [k for k in (tensors.get("k"), trainer.get("k")) if k is not None]
    values = {resolve_k(file, None, k) for k in stated}
    if options.k is None and len(values) > 1:
        raise UserError(f"{str(file)!r}: its tensor k and its config.json say {sorted(values)}; choose one with --k")
    return resolve_k(file, options.k, *stated)


def _prefixes(file: Path, groups: Tensor, width: int) -> list[float]:
    """The ends of the groups, as shares of the width."""
    sizes = groups.tolist() if groups.dtype == torch.int64 else []
    if not sizes or min(sizes) < 1 or sum(sizes) != width:
        raise UserError(f"{str(file)!r}: group_sizes do not add up to its {width} latents; take an undamaged copy")
    return [end / width for end in itertools.accumulate(sizes)]


def _scaled(tensors: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The tensors with biases and thresholds rescaled for raw rows, as by the tool's own scale_biases."""
    matrices = ("encoder.weight", "decoder.weight", "W_enc", "W_dec", "r_mag", "k", "group_sizes")
    scaled = {name: value if name in matrices else (value.double() * factor).float() for name, value in tensors.items()}
    if "threshold" in tensors and not tensors["threshold"].shape and tensors["threshold"] < 0:
        scaled["threshold"] = tensors["threshold"]
    return scaled if factor != 1 else dict(tensors)


def _to_panscope(kind: str, scaled: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in Panscope's names and layout, with latents as the first dimension."""
    tensors = {_RENAMED.get(name, name): value for name, value in scaled.items() if name not in ("k", "group_sizes")}
    transposed_name = "W_dec" if "decoder.weight" in scaled else "W_enc"
    tensors[transposed_name] = transposed(tensors, transposed_name)
    if kind == "AutoEncoderTopK":
        tensors.pop("threshold", None)
    elif "k" in SHAPES[kind]:
        tensors["threshold"] = tensors["threshold"].clamp_min(0)
    return tensors


def _site(trainer: Mapping[str, Any]) -> Site | None:
    """The site given by `submodule_name`, such as resid_post_layer_3, and `layer`; None if they disagree."""
    match, layer = _SUBMODULE.fullmatch(_text(trainer, "submodule_name") or ""), trainer.get("layer")
    if match is None or isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
        return None
    return Site(layer, match[1]) if match[2] is None or int(match[2]) == layer else None


def _text(table: Mapping[str, Any], key: str) -> str | None:
    value = table.get(key)
    return value if isinstance(value, str) else None


def write(foreign: ImportedCoder, folder: Path) -> list[Path]:
    """See `Format`. Writes a coder of one site and any architecture for the tool's load_dictionary."""
    check_raw(foreign.wired, "dictionary_learning")
    coder = for_raw_rows(foreign.wired, "dictionary_learning")
    kind = _class_of(coder)
    state = _state_dict(kind, coder, foreign.about)
    with replacing(folder / _WEIGHTS) as temporary, temporary.open("wb") as file:
        torch.save(state, file)
    write_json(folder / _CONFIG, _config(foreign, kind, coder))
    return [folder / _WEIGHTS, folder / _CONFIG]


def _class_of(coder: Coder) -> str:
    """The class for a coder; that of a ReLU coder depends on whether b_dec is subtracted from its input."""
    if coder.config.architecture == "relu":
        return "AutoEncoder" if coder.config.pre_encoder_bias else "AutoEncoderNew"
    classes = {architecture: kind for kind, architecture in _ARCHITECTURES.items()}
    if coder.config.architecture not in classes:
        raise unsupported("dictionary_learning", f"architecture {coder.config.architecture!r}")
    return classes[coder.config.architecture]


def _state_dict(kind: str, coder: Coder, about: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict, in the tool's order of names and dimensions."""
    tensors = uncentred(coder) if kind in _UNCENTRED else centred(coder)
    if "k" in SHAPES[kind]:
        tensors["k"] = torch.tensor(int(coder.config.sparsity), dtype=torch.int32)
        tensors["threshold"] = torch.tensor(_threshold(kind, coder, about))
    if kind == "JumpReluAutoEncoder":
        tensors["threshold"] = threshold_of(coder)
    if kind == "MatryoshkaBatchTopKSAE":
        ends = [0, *coder.config.prefix_ends()]
        tensors["group_sizes"] = torch.tensor([end - start for start, end in itertools.pairwise(ends)])
    transposed_name = "W_dec" if "decoder.weight" in SHAPES[kind] else "W_enc"
    tensors[transposed_name] = transposed(tensors, transposed_name)
    return {name: tensors[_RENAMED.get(name, name)] for name in SHAPES[kind]}


def _threshold(kind: str, coder: Coder, about: Mapping[str, Any]) -> float:
    """The running threshold of BatchTopK; if it has no effect, and for TopK, that of the imported file or else -1."""
    if isinstance(coder, BatchTopKCoder) and coder.threshold > torch.finfo(torch.float32).tiny:
        return float(coder.threshold)
    stated = about.get("threshold") if about.get("dict_class") == kind else None
    return stated if isinstance(stated, float) else _UNSET


def _config(foreign: ImportedCoder, kind: str, coder: Coder) -> dict[str, Any]:
    """The contents of config.json; the loader needs only the class and K, the rest is for users and other tools."""
    about, site = foreign.about, foreign.wired.wiring.reads[0]
    kept = about.get("trainer") if about.get("dict_class") == kind else None
    trainer: dict[str, Any] = {"trainer_class": _TRAINERS[kind], "device": "cpu", "seed": None, "wandb_name": kind}
    trainer |= dict(kept) if isinstance(kept, Mapping) else {}
    trainer |= {
        "dict_class": kind,
        "activation_dim": coder.config.d_in,
        "dict_size": coder.config.width,
        "layer": site.layer,
        "lm_name": about.get("model"),
        "submodule_name": f"{site.kind}_layer_{site.layer}",
    }
    if "k" in SHAPES[kind]:
        trainer["k"] = int(coder.config.sparsity)
    assert json.dumps(trainer)
    return {"trainer": trainer, **exported_names(foreign)}


DICTIONARY_LEARNING = Format(
    name="dictionary_learning",
    description="dictionary_learning: a folder with ae.pt and config.json, or an ae.pt",
    imports=tuple(dict.fromkeys(_ARCHITECTURES.values())),
    exports=tuple(dict.fromkeys(_ARCHITECTURES.values())),
    needs="--site, if submodule_name is not a site; --k for TopK, if no file states it",
    detect=detect,
    read=read,
    write=write,
    files=files,
)
