"""From another tool's tensors to a coder, and from a coder to what other tools can hold.

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
from panscope.formats.untrusted import fit
from panscope.transforms.fold_norm import fold_norm
from panscope.transforms.to_jumprelu import frozen
from panscope.types import Site, UserError

AS_JUMPRELU = ("relu", "jumprelu", "batchtopk", "matryoshka")
"""Our architectures that a JumpReLU coder can stand for, once their running threshold is one of each latent."""
_TINY = torch.finfo(torch.float32).tiny
"""Stands for a threshold of 0: ours are above 0."""


def made(path: Path, architecture: str, tensors: dict[str, Tensor], **fields: Any) -> Coder:
    """A coder of these tensors, named and laid out as ours: W_enc [F, D], W_dec [F, E].

    A threshold of 0 or less cuts nothing that the ReLU before it lets through, and becomes the smallest one.
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
    """The sizes of tensors, as `fit` finds them; all but those named in `counts` must be floating point.

    Raises UserError as `fit`, and for whole numbers where weights should be.
    """
    sizes = fit(path, tensors, dims, optional)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() and name not in counts.split():
            raise UserError(f"{str(path)!r}: tensor {name!r} is of {tensor.dtype}, expected floating point weights")
    return sizes


def wiring_of(
    path: Path,
    asked: ImportOptions,
    reads: Site | None,
    predicts: Site | None,
    said: object = None,
    *,
    several: bool = False,
) -> Wiring:
    """The wiring of a coder at the sites that the file says, or that the user says instead.

    Raises UserError where nobody does, or where the user names several and the format's coders read one.
    """
    sites = asked.sites or ((reads,) if reads else ())
    if not sites:
        names = f"says {said!r}, which is no site of ours" if said else "does not say at which site it reads"
        raise UserError(
            f"{str(path)!r} {names}: name the site that it reads (--site, or asked= in Python), such as L03.resid_post"
        )
    read, *others = sites
    predicts = asked.predicts or predicts
    if others:
        named = " ".join(map(str, sites))
        if predicts or not several:
            what = f"predicts {predicts}" if predicts else "is of a format whose coders read one site each"
            raise UserError(f"{str(path)!r} {what}, so it cannot read several ({named}): name one site")
        return Wiring.read({"wiring": "multilayer", "reads": sites, "predicts": sites}, repr(str(path)))
    predicts = predicts or read
    wiring = "sae" if predicts == read else "transcoder"
    return Wiring(wiring=wiring, reads=(read,), predicts=(predicts,))


def finished(wired: WiredCoder, name: str, wirings: tuple[str, ...] = ("sae", "transcoder")) -> WiredCoder:
    """The same coder with fixed factors folded in and a running threshold as JumpReLU; per-row normalisers stay.

    Raises UserError, naming the format, for another wiring than `wirings`.
    """
    wiring = wired.wiring
    if wiring.wiring not in wirings:
        then = "write saelens instead" if wiring.kind.stacks_rows else "`panscope publish` keeps our own files of it"
        sites = " ".join(map(str, wiring.reads))
        raise UserError(f"{name} has no place for a {wiring.wiring} coder, and this one reads {sites}: {then}")
    coder = frozen(wired.coder) if isinstance(wired.coder, BatchTopKCoder) else wired.coder
    normaliser = wired.normaliser
    if normaliser.kind in PER_ROW:
        return WiredCoder(wired.wiring, coder, normaliser)
    if normaliser.parts or (normaliser.scale_in, normaliser.scale_out) != (1, 1):
        coder = fold_norm(coder, normaliser)
    return WiredCoder(wired.wiring, coder, UNIT)


def without_pre_bias(coder: Coder) -> Coder:
    """The same coder with no bias before the encoder."""
    return fold_norm(coder, UNIT) if coder.config.pre_encoder_bias else coder


def as_jumprelu(wired: WiredCoder, name: str) -> Coder:
    """The JumpReLU coder for raw rows of one site that a format asks for; ReLU is one with no threshold.

    Raises UserError, naming the format, for what no such coder computes.
    """
    wired = finished(wired, name)
    architecture = wired.coder.config.architecture
    if wired.normaliser.kind in PER_ROW:
        raise UserError(f"{name} has no place for the normaliser {wired.normaliser.kind!r}: write saelens instead")
    if architecture not in AS_JUMPRELU:
        raise UserError(
            f"{name} holds JumpReLU coders, this one is {architecture!r}: {way_to_jumprelu(architecture)}write saelens"
        )
    return without_pre_bias(wired.coder)


def way_to_jumprelu(architecture: str) -> str:
    """How a coder of an architecture becomes JumpReLU, for a sentence that goes on; empty where it cannot."""
    if architecture != "topk":
        return ""
    return "train it with convert_to = 'jumprelu' in its [[coders]] table, which saves TopK as JumpReLU, or "


def threshold_of(coder: Coder) -> Tensor:
    """[F] the thresholds of a JumpReLU coder, 0 where nothing is cut; 0 for ReLU."""
    found = coder.tensors().get("threshold")
    if found is None:
        return torch.zeros(coder.config.width)
    return torch.where(found > _TINY, found, 0.0)


def wired_as(path: Path, wiring: Wiring, coder: Coder, normaliser: str = "none") -> WiredCoder:
    """A coder at its sites, with a normaliser that differs from row to row or none.

    Raises UserError for a coder that is to predict the site it reads, in another width.
    """
    if not wiring.kind.predicts_other and coder.config.d_in != coder.config.d_out:
        raise UserError(
            f"{str(path)!r} reads width {coder.config.d_in} and predicts width {coder.config.d_out}, so it is a "
            "transcoder: name the site that it predicts by --predicts, such as L03.mlp_out"
        )
    return WiredCoder(wiring, coder, per_row(normaliser))


def per_row(kind: str) -> Normaliser:
    """A normaliser that differs from row to row, or none."""
    return Normaliser.read({"kind": kind, "scale_in": 1, "scale_out": 1}, "normaliser")
