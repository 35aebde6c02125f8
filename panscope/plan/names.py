"""Coder names in Llama Scope's style: `L03R-8x-topk-k32` is layer 3, site R, 8 latents a dimension, TopK, K = 32."""

import re
from collections.abc import Sequence
from typing import Any

from panscope.coders.base import CoderConfig
from panscope.coders.jumprelu import JumpReLUConfig
from panscope.coders.topk import SelectingConfig
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
_MEANINGS = {
    "R": "the residual stream after the block",
    "Z": "the attention heads before W_O",
    "A": "the attention output",
    "M": "the MLP output",
    "I": "the MLP input",
    "N": "the MLP input without the norm's gain",
}


def checked(name: Any, what: str) -> str:
    """A name that can be a folder's; raises UserError otherwise."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"{what} {name!r} cannot stand in a folder's name: use letters, digits, '.', '_' and '-'")
    return name


def coder_name(wiring: Wiring, coder: CoderConfig, layers: int, tag: Any = "", *, priced: bool = True) -> str:
    """The name of a coder in a model of so many `layers`; `tag`, where two would be equal, goes to its end.

    `8x` is the width against that of one site, also where a crosscoder reads several. Where it is not `priced`, nobody
    knows the coefficient of its penalty, and its name has none.
    """
    tag = checked(tag, "tag") if tag != "" else ""
    sparsity = _sparsity(coder, priced=priced)
    parts = [_place(wiring, layers), f"{_expansion(wiring, coder)}x", coder.architecture, sparsity, tag]
    return "-".join(part for part in parts if part)


def meaning(wiring: Wiring, coder: CoderConfig, *, priced: bool = True) -> str:
    """What the name of a coder says, in words; `coder` is as it was trained, `priced` as `coder_name` takes it."""
    reads, predicts = (
        " and ".join(dict.fromkeys(f"{_LETTERS[site.kind]} ({_MEANINGS[_LETTERS[site.kind]]})" for site in sites))
        for sites in (wiring.reads, wiring.predicts)
    )
    where = {"transcoder": f"a transcoder from {reads} to {predicts}", "crosscoder": f"a crosscoder at {reads}"}
    sparsity = _sparsity(coder, priced=priced)
    parts = [
        f"{where.get(wiring.wiring, reads)} of {_layers(wiring)}",
        f"{_expansion(wiring, coder)} latents for each dimension",
        f"trained as {coder.architecture}",
        _SPARSITIES[sparsity[0]] + sparsity[1:] if sparsity else "",
    ]
    return ", ".join(part for part in parts if part)


_SPARSITIES = {"k": "K = ", "t": "an L0 of ", "l": "sparsity coefficient "}


def letters(wirings: Sequence[Wiring]) -> str:
    """The letters in the names of coders of these wirings, and what each stands for."""
    kinds = {site.kind for wiring in wirings for site in wiring.sites()}
    found = [f"{letter} {_MEANINGS[letter]}" for kind, letter in _LETTERS.items() if kind in kinds]
    of = {wiring.wiring for wiring in wirings}
    found += ["TC a transcoder, from N to M unless it says otherwise"] * ("transcoder" in of)
    return ", ".join(found + ["CC a crosscoder"] * ("crosscoder" in of))


def _layers(wiring: Wiring) -> str:
    found = sorted({site.layer for site in wiring.reads})
    if len(found) > 2 and found == list(range(found[0], found[-1] + 1)):
        return f"layers {found[0]} to {found[-1]}"
    return f"layer{'s' * (len(found) > 1)} " + ", ".join(map(str, found))


def _expansion(wiring: Wiring, coder: CoderConfig) -> str:
    per_layer = coder.d_in / len(wiring.reads) if wiring.wiring == "crosscoder" else coder.d_in
    return f"{coder.width / per_layer:.4g}"


def _sparsity(coder: CoderConfig, *, priced: bool) -> str:
    """K, the L0 asked for, or the penalty's coefficient where there is one."""
    if isinstance(coder, SelectingConfig):
        return f"k{coder.sparsity:g}"
    if isinstance(coder, JumpReLUConfig) and coder.target_l0 is not None:
        return f"t{coder.target_l0:g}"
    return f"l{short(coder.sparsity)}" if priced else ""


def _place(wiring: Wiring, layers: int) -> str:
    reads, predicts = _LETTERS[wiring.reads[0].kind], _LETTERS[wiring.predicts[0].kind]
    if wiring.wiring == "sae":
        return f"L{wiring.reads[0].layer:02d}{reads}"
    if wiring.wiring == "transcoder":
        letters = "TC" if (reads, predicts) == ("N", "M") else f"TC{reads}{predicts}"
        return f"L{wiring.reads[0].layer:02d}{letters}"
    kinds = "".join(dict.fromkeys(_LETTERS[site.kind] for site in wiring.reads))
    place = f"{_range([site.layer for site in wiring.reads], layers)}-{kinds}"
    return f"CC-{place}" if wiring.wiring == "crosscoder" else place


def _range(numbers: list[int], layers: int) -> str:
    """`all`, `L02-05` for what is next to each other, else `L02.05.09`."""
    found = sorted(set(numbers))
    if found == list(range(layers)):
        return "all"
    if len(found) > 1 and found == list(range(found[0], found[-1] + 1)):
        return f"L{found[0]:02d}-{found[-1]:02d}"
    return "L" + ".".join(f"{layer:02d}" for layer in found)


def short(value: float) -> str:
    """0.001 as 1e-3, 2.5 as 2.5."""
    if 0.01 <= value < 1000:
        return f"{value:g}"
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
