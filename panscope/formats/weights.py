"""From another tool's tensors to a coder, and from a coder to what other tools can hold.

Shape letters: D input width, E output width, F latents.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panscope import coders
from panscope.coders.base import Coder
from panscope.coders.batchtopk import BatchTopKCoder
from panscope.coders.normaliser import PER_ROW, Normaliser
from panscope.coders.wiring import UNIT, WiredCoder, Wiring
from panscope.formats.base import Asked
from panscope.transforms.fold_norm import fold_norm
from panscope.transforms.to_jumprelu import frozen
from panscope.types import Site, UserError

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


def wiring_of(path: Path, asked: Asked, reads: Site | None, predicts: Site | None, said: object = None) -> Wiring:
    """The wiring of a coder at the sites that the file says, or that the user says instead."""
    reads = asked.reads or reads
    if reads is None:
        names = f"says {said!r}, which is no site of ours" if said else "does not say at which site it reads"
        raise UserError(f"{str(path)!r} {names}: name the site that it reads, such as L03.resid_post")
    predicts = asked.predicts or predicts or reads
    wiring = "sae" if reads == predicts else "transcoder"
    return Wiring(wiring=wiring, reads=(reads,), predicts=(predicts,))


def finished(wired: WiredCoder) -> WiredCoder:
    """The same coder with fixed factors folded in and a running threshold as JumpReLU; per-row normalisers stay."""
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


def one_pair(wired: WiredCoder, name: str) -> WiredCoder:
    """A finished coder that reads one site and predicts one; raises UserError for a crosscoder, naming the format."""
    if wired.wiring.wiring == "crosscoder":
        raise UserError(f"{name} has no place for a crosscoder: it reads {len(wired.wiring.reads)} sites at once")
    return finished(wired)


def as_jumprelu(wired: WiredCoder, name: str) -> Coder:
    """The JumpReLU coder for raw rows of one site that a format asks for; ReLU is one with no threshold.

    Raises UserError, naming the format, for what no such coder computes.
    """
    wired = one_pair(wired, name)
    architecture = wired.coder.config.architecture
    if wired.normaliser.kind in PER_ROW:
        raise UserError(f"{name} has no place for the normaliser {wired.normaliser.kind!r}: write saelens instead")
    if architecture not in ("relu", "jumprelu"):
        raise UserError(
            f"{name} holds JumpReLU coders, this one is {architecture!r}: convert it to jumprelu, or write saelens"
        )
    return without_pre_bias(wired.coder)


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
    if wiring.wiring != "transcoder" and coder.config.d_in != coder.config.d_out:
        raise UserError(
            f"{str(path)!r} reads width {coder.config.d_in} and predicts width {coder.config.d_out}, so it is a "
            "transcoder: name the site that it predicts, such as L03.mlp_out"
        )
    return WiredCoder(wiring, coder, per_row(normaliser))


def per_row(kind: str) -> Normaliser:
    """A normaliser that differs from row to row, or none."""
    return Normaliser.read({"kind": kind, "scale_in": 1, "scale_out": 1}, "normaliser")
