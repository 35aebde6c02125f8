"""Conversions that make a coder representable in the formats sparsify, dictionary_learning, mlsae and OpenAI.

Tools differ in whether they subtract the decoder bias from the input. Both conventions are equivalent:
W_enc (x - b_dec) + b = W_enc x + (b - W_enc b_dec), computed in float64 and rounded once; a coder that already follows
the required convention keeps its numbers bit for bit.

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


def unsupported(tool: str, what: str, then: str = _INSTEAD) -> UserError:
    """The error for a coder that a tool's files cannot represent."""
    return UserError(f"{tool} cannot represent {what}: {then}")


def for_raw_rows(wired: WiredCoder, tool: str, wirings: tuple[str, ...] = ("sae",), *, skip: bool = False) -> Coder:
    """The coder with fixed scale factors folded into its weights and any selection of latents made by value.

    A normaliser that differs from row to row is left to the caller. Raises UserError for a wiring other than
    `wirings`, and for a skip connection unless `skip`.
    """
    if wired.wiring.wiring not in wirings:
        raise unsupported(tool, f"a coder of wiring {wired.wiring.wiring!r}")
    if wired.coder.config.skip and not skip:
        raise unsupported(tool, "a skip connection")
    coder = wired.coder
    if isinstance(coder, BatchTopKCoder) and (coder.config.by_norm or wired.normaliser.scale_in != 1):
        coder = frozen(coder)
    if wired.normaliser.kind not in PER_ROW and (wired.normaliser.scale_in, wired.normaliser.scale_out) != (1, 1):
        coder = fold_norm(coder, wired.normaliser)
    if isinstance(coder.config, TopKConfig) and coder.config.by_norm:
        coder = unit_decoder(coder)
    return coder


def check_raw(wired: WiredCoder, tool: str) -> None:
    """Raise UserError for a coder with per-row normalisation."""
    if wired.normaliser.kind in PER_ROW:
        raise unsupported(tool, f"per-row normalisation ({wired.normaliser.kind!r})")


def centred(coder: Coder) -> dict[str, Tensor]:
    """The tensors of `coder` for a tool that subtracts b_dec from the input."""
    return coder.tensors() if coder.config.pre_encoder_bias else _moved(coder, 1.0)


def uncentred(coder: Coder) -> dict[str, Tensor]:
    """The tensors of `coder` for a tool that encodes the input unchanged."""
    return _moved(coder, -1.0) if coder.config.pre_encoder_bias else coder.tensors()


def _moved(coder: Coder, sign: float) -> dict[str, Tensor]:
    """The tensors with sign * W_enc b_dec [F] added to the encoder biases; d_in and d_out must be equal."""
    tensors = coder.tensors()
    shift = sign * (tensors["W_enc"].double() @ tensors["b_dec"].double())
    moved = tensors | {"b_enc": (tensors["b_enc"].double() + shift).float()}
    if "b_mag" in tensors:
        moved["b_mag"] = (tensors["b_mag"].double() + tensors["r_mag"].double().exp() * shift).float()
    return moved


def resolve_k(path: Path, k: int | None, *stated: object) -> int:
    """K from the user's `k` and the values that the file states in one or more places (None where it states none).

    Raises UserError if K is given nowhere, if the user contradicts the file, or if it is not a positive integer.
    """
    found = [_positive_int(path, value) for value in stated if value is not None]
    if k is not None and found and k not in found:
        raise UserError(f"k is {k}, but {str(path)!r} says {found[0]}: omit --k, or import that coder alone")
    if k is None and not found:
        raise UserError(f"{str(path)!r} does not state the number of active latents per row: give --k, such as --k 32")
    return found[0] if k is None else k


def _positive_int(path: Path, k: object) -> int:
    if isinstance(k, Tensor):
        k = k.item() if k.numel() == 1 else None
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise UserError(f"{str(path)!r}: k is {k!r}, expected an integer above 0; take an undamaged copy")
    return k


def transposed(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """A contiguous copy of the transpose of a matrix."""
    return tensors[name].T.contiguous()


def is_rounding_error(bias: Tensor, terms: Tensor) -> bool:
    """Whether a bias [F], computed as a difference of `terms` [F], is zero up to rounding error."""
    return bool((bias.abs() <= 4 * torch.finfo(torch.float32).eps * (terms.abs() + terms.abs().max())).all())
