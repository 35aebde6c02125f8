"""Coder names in Llama Scope's style: `L03R-8x-topk-k32` is layer 3, site R, 8 latents a dimension, TopK, K = 32."""

import re
from typing import Any

from panscope.coders.base import CoderConfig
from panscope.coders.wiring import Wiring
from panscope.types import UserError

_LETTERS = {
    "resid_post": "R",
    "attn_z": "Z",
    "attn_out": "A",
    "mlp_out": "M",
    "mlp_in": "I",
    "mlp_in_no_gain": "N",
}


def checked(name: Any, what: str) -> str:
    """A name that can be a folder's; raises UserError otherwise."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"{what} {name!r} cannot stand in a folder's name: use letters, digits, '.', '_' and '-'")
    return name


def coder_name(wiring: Wiring, coder: CoderConfig, tag: Any = "") -> str:
    """The name of a coder; `tag`, where two would be equal, goes to its end."""
    tag = checked(tag, "tag") if tag != "" else ""
    sparsity = f"k{coder.sparsity:g}" if coder.architecture == "topk" else f"l{_short(coder.sparsity)}"
    parts = [_place(wiring), f"{coder.width / coder.d_in:.4g}x", coder.architecture, sparsity, tag]
    return "-".join(part for part in parts if part)


def _place(wiring: Wiring) -> str:
    reads, predicts = _LETTERS[wiring.reads.kind], _LETTERS[wiring.predicts.kind]
    if wiring.wiring == "sae":
        return f"L{wiring.reads.layer:02d}{reads}"
    letters = "TC" if (reads, predicts) == ("N", "M") else f"TC{reads}{predicts}"
    return f"L{wiring.reads.layer:02d}{letters}"


def _short(value: float) -> str:
    """0.001 as 1e-3, 2.5 as 2.5."""
    if 0.01 <= value < 1000:
        return f"{value:g}"
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
