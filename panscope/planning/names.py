"""Coder names in Llama Scope's style: `L03R-8x-topk-k32` is layer 3, site R, 8 latents a dimension, TopK, K = 32."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from panscope.coders.base import CoderConfig
from panscope.coders.wiring import WIRINGS, Wiring, WiringKind
from panscope.site_kinds import KINDS
from panscope.types import UserError

_LETTERS = {"K": "k", "L0": "t", "lambda": "l"}
_SHORT = {"learning_rate": "lr", "recipe": "", "architecture": ""}
"""How fields are written in tags; others by their own names."""
_IN_NAMES = {"wiring", "sites", "layers", "architecture", "width", "expansion", "sparsity", "target_l0", "tag"}
"""Fields that names have anyway."""
_IN_WORDS = {"K": "K =", "L0": "an L0 of", "lambda": "sparsity coefficient"}


def checked(name: Any, what: str) -> str:
    """A name that can be a folder's; raises UserError otherwise."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"{what} {name!r} cannot be part of a folder's name: use letters, digits, '.', '_' and '-'")
    return name


def coder_name(
    wiring: Wiring, coder: CoderConfig, layers: int, tag: Any = "", *, knows_coefficient: bool = True
) -> str:
    """The name of a coder in a model of so many `layers`; `tag`, where two would be equal, goes to its end.

    `8x` is the number of latents divided by the width of one site, also where a crosscoder reads several. Without
    `knows_coefficient` that of a penalty is left out, as other tools' files do not say it.
    """
    tag = checked(tag, "tag") if tag != "" else ""
    sparsity = _sparsity(coder, knows_coefficient=knows_coefficient)
    parts = [_place(wiring, layers), f"{_expansion(wiring, coder)}x", coder.architecture, sparsity, tag]
    return "-".join(part for part in parts if part)


def telling_apart(names: Sequence[str], points: Sequence[Mapping[str, Any]]) -> list[str]:
    """A tag for every coder whose name another one has too: the fields of its table in which they differ.

    `lr2e-4` for a learning rate, `seed1` for a seed, a recipe by its name, other fields as `bandwidth0.01`; after the
    tag that the table gives. Empty for a name that is its own.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, point in zip(names, points, strict=True):
        groups.setdefault(name, []).append(point)
    return [
        _tag(point, _differing(groups[name])) if len(groups[name]) > 1 else ""
        for name, point in zip(names, points, strict=True)
    ]


def _differing(points: Sequence[Mapping[str, Any]]) -> list[str]:
    fields = dict.fromkeys(field for point in points for field in point)
    return [
        field
        for field in fields
        if field not in _IN_NAMES and any(point.get(field) != points[0].get(field) for point in points)
    ]


def _tag(point: Mapping[str, Any], fields: Sequence[str]) -> str:
    own = [_field(field, point[field]) for field in fields if field in point]
    return "-".join(part for part in (str(point.get("tag", "")), *own) if part)


def _field(field: str, value: Any) -> str:
    if isinstance(value, bool):
        return field if value else f"no_{field}"
    if isinstance(value, list | tuple):
        return _SHORT.get(field, field) + "_".join(_field("", each) for each in value)
    return _SHORT.get(field, field) + (short(value) if isinstance(value, float) else str(value))


def meaning(wiring: Wiring, coder: CoderConfig, *, knows_coefficient: bool = True) -> str:
    """What the name of a coder says, in words; `coder` is as it was trained, `knows_coefficient` as in `coder_name`."""
    reads, predicts = (
        " and ".join(dict.fromkeys(f"{KINDS[site.kind].letter} ({KINDS[site.kind].meaning})" for site in sites))
        for sites in (wiring.reads, wiring.predicts)
    )
    sites = f"from {reads} to {predicts}" if wiring.kind.predicts_other else f"at {reads}"
    where = f"a {wiring.kind.singular} {sites}" if wiring.kind.prefix else reads
    kind, value = coder.sparsity_aim()
    parts = [
        f"{where} of {_layers(wiring)}",
        f"{_expansion(wiring, coder)} latents for each dimension",
        f"trained as {coder.architecture}",
        f"{_IN_WORDS[kind]} {_written(kind, value)}" if knows_coefficient or kind != "lambda" else "",
    ]
    return ", ".join(part for part in parts if part)


def letters(wirings: Sequence[Wiring]) -> str:
    """The letters in the names of coders of these wirings, and what each means."""
    kinds = {site.kind for wiring in wirings for site in wiring.sites()}
    found = [f"{known.letter} {known.meaning}" for kind, known in KINDS.items() if kind in kinds]
    for wiring in dict.fromkeys(wiring.wiring for wiring in wirings):
        kind = WIRINGS[wiring]
        usual = ""
        if kind.predicts_other:
            reads, predicts = _default_letters(kind)
            usual = f", from {reads} to {predicts} unless it says otherwise"
        found += [f"{kind.prefix} a {kind.singular}{usual}"] if kind.prefix else []
    return ", ".join(found)


def _layers(wiring: Wiring) -> str:
    found = sorted({site.layer for site in wiring.reads})
    if len(found) > 2 and found == list(range(found[0], found[-1] + 1)):
        return f"layers {found[0]} to {found[-1]}"
    return f"layer{'s' * (len(found) > 1)} " + ", ".join(map(str, found))


def _expansion(wiring: Wiring, coder: CoderConfig) -> str:
    return f"{coder.width / wiring.site_width(coder.d_in):.4g}"


def _sparsity(coder: CoderConfig, *, knows_coefficient: bool) -> str:
    """K, the L0 asked for, or the penalty's coefficient where there is one."""
    kind, value = coder.sparsity_aim()
    return f"{_LETTERS[kind]}{_written(kind, value)}" if knows_coefficient or kind != "lambda" else ""


def _written(kind: str, value: float) -> str:
    return short(value) if kind == "lambda" else f"{value:g}"


def _place(wiring: Wiring, layers: int) -> str:
    kind, prefix = wiring.kind, wiring.kind.prefix
    reads, predicts = (
        "".join(dict.fromkeys(KINDS[site.kind].letter for site in sites)) for sites in (wiring.reads, wiring.predicts)
    )
    if kind.has_several_sites:
        return "-".join(part for part in (prefix, _range([s.layer for s in wiring.reads], layers), reads) if part)
    is_default = kind.predicts_other and [reads, predicts] == _default_letters(kind)
    letters = "" if is_default else reads + predicts * kind.predicts_other
    return f"L{wiring.reads[0].layer:02d}{prefix}{letters}"


def _default_letters(kind: WiringKind) -> list[str]:
    """The letters of the sites that a wiring reads and predicts where the suite names none."""
    return [KINDS[name.strip()].letter for name in kind.default_sites.split("->")]


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
    if value == 0 or 0.01 <= value < 1000:
        return f"{value:g}"
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
