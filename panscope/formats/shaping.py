"""What a coder must be before sparsify, dictionary_learning, mlsae or OpenAI have a place for it.

Tools differ in whether the decoder's bias is taken off the input first. One side becomes the other exactly:
W_enc (x - b_dec) + b = W_enc x + (b - W_enc b_dec), computed in float64 and rounded once; a coder that is already on
the wanted side keeps its numbers bit for bit.

Shape letters: F latents, D input width.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from panscope.coders.base import Coder
from panscope.coders.batchtopk import BatchTopKCoder
from panscope.coders.normaliser import PER_ROW
from panscope.coders.topk import TopKConfig
from panscope.coders.wiring import WiredCoder
from panscope.transforms.fold_norm import fold_norm
from panscope.transforms.to_jumprelu import frozen
from panscope.transforms.unit_decoder import unit_decoder
from panscope.types import UserError

_INSTEAD = "export it as saelens"


def refuse(tool: str, what: str, then: str = _INSTEAD) -> UserError:
    """The error for a coder that a tool's files have no place for."""
    return UserError(f"{tool} has no place for {what}: {then}")


def bare(wired: WiredCoder, tool: str, wirings: tuple[str, ...] = ("sae",), *, skip: bool = False) -> Coder:
    """The coder for raw rows (or for rows standardised one by one), ranking by value if it ranks at all.

    Raises UserError for another wiring than `wirings`, for a skip unless the tool has a place for it, and for a
    normaliser that differs from row to row unless it is the one that the caller writes down (`standardise`).
    """
    if wired.wiring.wiring not in wirings:
        raise refuse(tool, f"a coder of wiring {wired.wiring.wiring!r}")
    if wired.coder.config.skip and not skip:
        raise refuse(tool, "a skip connection")
    coder = wired.coder
    if isinstance(coder, BatchTopKCoder) and (coder.config.by_norm or wired.normaliser.scale_in != 1):
        coder = frozen(coder)
    if wired.normaliser.kind not in PER_ROW and (wired.normaliser.scale_in, wired.normaliser.scale_out) != (1, 1):
        coder = fold_norm(coder, wired.normaliser)
    if isinstance(coder.config, TopKConfig) and coder.config.by_norm:
        coder = unit_decoder(coder)
    return coder


def check_raw(wired: WiredCoder, tool: str) -> None:
    """Raise UserError for a coder whose rows are normalised one by one."""
    if wired.normaliser.kind in PER_ROW:
        raise refuse(tool, f"rows normalised one by one ({wired.normaliser.kind!r})")


def centred(coder: Coder) -> dict[str, Tensor]:
    """The tensors of `coder` for a tool that takes b_dec off the input first."""
    return coder.tensors() if coder.config.pre_encoder_bias else _moved(coder, 1.0)


def uncentred(coder: Coder) -> dict[str, Tensor]:
    """The tensors of `coder` for a tool that encodes the input as it comes."""
    return _moved(coder, -1.0) if coder.config.pre_encoder_bias else coder.tensors()


def _moved(coder: Coder, sign: float) -> dict[str, Tensor]:
    """The tensors with sign * W_enc b_dec [F] added to whatever is added to W_enc x; d_in and d_out are equal."""
    tensors = coder.tensors()
    shift = sign * (tensors["W_enc"].double() @ tensors["b_dec"].double())
    moved = tensors | {"b_enc": (tensors["b_enc"].double() + shift).float()}
    if "b_mag" in tensors:
        moved["b_mag"] = (tensors["b_mag"].double() + tensors["r_mag"].double().exp() * shift).float()
    return moved


def whole_k(path: Path, asked: int | None, *stated: object) -> int:
    """K as the file states it, in one or more places, and the user asks for it.

    Raises UserError where nobody says it, both say different numbers, or it is no whole number above 0.
    """
    found = [_whole(path, k) for k in stated if k is not None]
    if asked is not None and found and asked not in found:
        raise UserError(f"k is {asked}, but {str(path)!r} says {found[0]}: leave --k out, or import that coder alone")
    if asked is None and not found:
        raise UserError(f"{str(path)!r} does not say how many latents a row keeps: say it by --k, such as --k 32")
    return found[0] if asked is None else asked


def _whole(path: Path, k: object) -> int:
    if isinstance(k, Tensor):
        k = k.item() if k.numel() == 1 else None
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise UserError(f"{str(path)!r}: k is {k!r}, expected a whole number above 0; take an undamaged copy")
    return k


def transposed(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """A matrix turned, as numbers of its own."""
    return tensors[name].T.contiguous()


def is_zero(bias: Tensor, terms: Tensor) -> bool:
    """Whether a bias [F] that is a difference of `terms` [F] is nothing but their rounding."""
    return bool((bias.abs() <= 4 * torch.finfo(torch.float32).eps * (terms.abs() + terms.abs().max())).all())
