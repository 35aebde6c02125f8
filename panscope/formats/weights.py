"""Building a coder from another tool's tensors, and converting a coder to what other tools can represent.

Shape letters: D input width, E output width, F latents.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panscope import coders
from panscope.coders.base import Coder
from panscope.coders.batchtopk import BatchTopKCoder
from panscope.coders.normaliser import PER_ROW, Normaliser
from panscope.coders.wiring import UNIT, WiredCoder, Wiring
from panscope.formats.base import ImportOptions
from panscope.formats.untrusted import match_shapes
from panscope.transforms.fold_norm import fold_norm
from panscope.transforms.to_jumprelu import frozen
from panscope.types import Site, UserError

AS_JUMPRELU = ("relu", "jumprelu", "batchtopk", "matryoshka")
"""Panscope architectures that can be written as JumpReLU, with a running threshold as one threshold per latent."""
_TINY = torch.finfo(torch.float32).tiny
"""Represents a threshold of 0, as thresholds in Panscope must be positive."""


def build_coder(path: Path, architecture: str, tensors: dict[str, Tensor], **fields: Any) -> Coder:
    """A coder with these tensors, in Panscope's names and layout: W_enc [F, D], W_dec [F, E].

    `fields` are further config fields. A threshold of 0 or less has no effect after the ReLU and is replaced by the
    smallest positive number. Raises UserError for tensors that do not fit the config.
    """
    width, d_in = tensors["W_enc"].shape
    if "threshold" in tensors:
        tensors = tensors | {"threshold": tensors["threshold"].clamp_min(_TINY)}
    known = {
        "architecture": architecture,
        "d_in": d_in,
        "d_out": tensors["W_dec"].shape[1],
        "width": width,
        "sparsity": 1.0,
        "decoder_norm": "free",
        "encoder_init": "own",
        "skip": "W_skip" in tensors,
    }
    config = coders.config_type(architecture).read(known | fields, str(path))
    try:
        return coders.build(config).load_tensors(tensors)
    except UserError as error:
        raise UserError(f"{str(path)!r}: {error}") from None


def weight_sizes(
    path: Path, tensors: Mapping[str, Tensor], dims: Mapping[str, str], *, optional: str = "", counts: str = ""
) -> dict[str, int]:
    """The sizes of tensors, as `match_shapes` returns them; all but those named in `counts` must be floating point.

    Raises UserError as `match_shapes`, and for a tensor of integers that should hold weights.
    """
    sizes = match_shapes(path, tensors, dims, optional)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() and name not in counts.split():
            raise UserError(f"{str(path)!r}: tensor {name!r} is of {tensor.dtype}, expected floating point weights")
    return sizes


def resolve_wiring(
    path: Path,
    options: ImportOptions,
    reads: Site | None,
    predicts: Site | None,
    stated: object = None,
    *,
    several: bool = False,
) -> Wiring:
    """The wiring of a coder at the sites that the user gives or, otherwise, that the file states.

    `stated` is the site name in the file, for the error message; `several` allows a coder that reads several sites.
    Raises UserError if the site is unknown, or if the user names several where the coder can read only one.
    """
    sites = options.sites or ((reads,) if reads else ())
    if not sites:
        names = f"states {stated!r}, which is not a Panscope site" if stated else "does not state the site it reads"
        raise UserError(
            f"{str(path)!r} {names}: name the site that it reads (--site, or options= in Python), "
            "such as L03.resid_post"
        )
    read, *others = sites
    predicts = options.predicts or predicts
    if others:
        named = " ".join(map(str, sites))
        if predicts or not several:
            what = f"predicts {predicts}" if predicts else "has a format whose coders read one site each"
            raise UserError(f"{str(path)!r} {what}, so it cannot read several ({named}): name one site")
        return Wiring.read({"wiring": "multilayer", "reads": sites, "predicts": sites}, repr(str(path)))
    predicts = predicts or read
    wiring = "sae" if predicts == read else "transcoder"
    return Wiring(wiring=wiring, reads=(read,), predicts=(predicts,))


def folded(wired: WiredCoder, name: str, wirings: tuple[str, ...] = ("sae", "transcoder")) -> WiredCoder:
    """The same coder with fixed scale factors folded in and a running threshold as JumpReLU; per-row normalisers stay.

    Raises UserError, naming the format `name`, for a wiring other than `wirings`.
    """
    wiring = wired.wiring
    if wiring.wiring not in wirings:
        then = "write saelens instead" if wiring.kind.stacks_rows else "`panscope publish` keeps its Panscope files"
        sites = " ".join(map(str, wiring.reads))
        raise UserError(f"{name} cannot represent a {wiring.wiring} coder, and this one reads {sites}: {then}")
    coder = frozen(wired.coder) if isinstance(wired.coder, BatchTopKCoder) else wired.coder
    normaliser = wired.normaliser
    if normaliser.kind in PER_ROW:
        return WiredCoder(wired.wiring, coder, normaliser)
    if normaliser.parts or (normaliser.scale_in, normaliser.scale_out) != (1, 1):
        coder = fold_norm(coder, normaliser)
    return WiredCoder(wired.wiring, coder, UNIT)


def without_pre_bias(coder: Coder) -> Coder:
    """The same coder without a bias before the encoder."""
    return fold_norm(coder, UNIT) if coder.config.pre_encoder_bias else coder


def as_jumprelu(wired: WiredCoder, name: str) -> Coder:
    """The equivalent JumpReLU coder of raw rows at one site; ReLU is JumpReLU with thresholds of 0.

    Raises UserError, naming the format `name`, if there is no such coder.
    """
    wired = folded(wired, name)
    architecture = wired.coder.config.architecture
    if wired.normaliser.kind in PER_ROW:
        raise UserError(f"{name} cannot represent the normaliser {wired.normaliser.kind!r}: write saelens instead")
    if architecture not in AS_JUMPRELU:
        raise UserError(
            f"{name} holds JumpReLU coders, this one is {architecture!r}: {jumprelu_advice(architecture)}write saelens"
        )
    return without_pre_bias(wired.coder)


def jumprelu_advice(architecture: str) -> str:
    """How to convert an architecture to JumpReLU, as the start of a sentence; empty if it cannot be converted."""
    if architecture != "topk":
        return ""
    return "train it with convert_to = 'jumprelu' in its [[coders]] table, which saves TopK as JumpReLU, or "


def threshold_of(coder: Coder) -> Tensor:
    """[F] the thresholds of a JumpReLU coder, 0 where they have no effect; all 0 for ReLU."""
    found = coder.tensors().get("threshold")
    if found is None:
        return torch.zeros(coder.config.width)
    return torch.where(found > _TINY, found, 0.0)


def wired_coder(path: Path, wiring: Wiring, coder: Coder, normaliser: str = "none") -> WiredCoder:
    """A coder with its sites and the per-row normaliser of this kind, or none.

    Raises UserError for a coder that predicts the site it reads but has a different output width.
    """
    if not wiring.kind.predicts_other and coder.config.d_in != coder.config.d_out:
        raise UserError(
            f"{str(path)!r} reads width {coder.config.d_in} and predicts width {coder.config.d_out}, so it is a "
            "transcoder: name the site that it predicts by --predicts, such as L03.mlp_out"
        )
    return WiredCoder(wiring, coder, per_row_normaliser(normaliser))


def per_row_normaliser(kind: str) -> Normaliser:
    """The per-row normaliser of this kind, or the one that does nothing for 'none'."""
    return Normaliser.read({"kind": kind, "scale_in": 1, "scale_out": 1}, "normaliser")
