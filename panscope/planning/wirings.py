"""The `wiring`, `sites` and `layers` of a `[[coders]]` table -> the Wiring of each of its coders.

`sites` entries are kinds; a transcoder's is "mlp_in_no_gain -> mlp_out", a crosscoder's may join kinds with " + ".
`layers` is "all", one number or a list: a coder for each, or for the wirings of several sites one coder over all of
them. A list of lists makes one such coder for each inner list.
"""

from typing import Any

from panscope.coders.wiring import WIRINGS, Wiring
from panscope.lms.facts import ModelFacts
from panscope.types import Site, UserError

_PREDICTING_OTHERS = " or ".join(repr(name) for name, kind in WIRINGS.items() if kind.predicts_other)
_JOINING = " or ".join(repr(name) for name, kind in WIRINGS.items() if kind.joins_columns)
_SEVERAL = " or ".join(repr(name) for name, kind in WIRINGS.items() if kind.has_several_sites)


def wirings(kind: Any, sites: list[Any] | None, layers: Any, lm: ModelFacts) -> list[Wiring]:
    """Every wiring of a table; raises UserError for what the model or the wiring cannot have."""
    if kind not in WIRINGS:
        raise UserError(f"coders: wiring is {kind!r}: use one of {', '.join(WIRINGS)}")
    groups = _layer_groups(kind, layers, lm)
    return [_wiring(kind, str(site), group, lm) for group in groups for site in sites or [WIRINGS[kind].default_sites]]


def site_text(wiring: Wiring) -> str:
    """The `sites` entry that says this wiring."""
    if wiring.kind.predicts_other:
        return f"{_kinds(wiring.reads)} -> {_kinds(wiring.predicts)}"
    return _kinds(wiring.reads)


def _kinds(sites: tuple[Site, ...]) -> str:
    return " + ".join(dict.fromkeys(site.kind for site in sites))


def layers_of(wiring: Wiring) -> list[int] | list[list[int]]:
    """The `layers` value that says this wiring."""
    layers = list(dict.fromkeys(site.layer for site in wiring.reads))
    return [layers] if wiring.kind.has_several_sites else layers


def _wiring(kind: str, text: str, layers: list[int], lm: ModelFacts) -> Wiring:
    reads_text, arrow, predicts_text = (part.strip() for part in text.partition("->"))
    known = WIRINGS[kind]
    if arrow and not known.predicts_other:
        raise UserError(
            f"coders: sites {text!r} names two sites, which wiring {kind!r} cannot: use wiring {_PREDICTING_OTHERS}"
        )
    if known.predicts_other and not arrow:
        raise UserError(
            f"coders: sites {text!r} names one site: write those of a {known.singular} as {known.default_sites!r}"
        )
    kinds = [part.strip() for part in reads_text.split("+")]
    if len(kinds) > 1 and not known.joins_columns:
        raise UserError(f"coders: sites {text!r} joins sites, which wiring {kind!r} cannot: use wiring {_JOINING}")
    reads = [Site(layer, name) for layer in layers for name in kinds]
    predicted = [part.strip() for part in predicts_text.split("+")] if arrow else kinds
    predicts = [Site(layer, name) for layer in layers for name in predicted]
    if known.has_several_sites and len(reads) < 2:
        raise UserError(f"coders: wiring {kind!r} needs several sites, and layers {layers} give one: name more layers")
    return Wiring.read({"wiring": kind, "reads": reads, "predicts": predicts}, "coders")


def _layer_groups(kind: str, wanted: Any, lm: ModelFacts) -> list[list[int]]:
    """Which layers each coder is about."""
    if wanted == "all":
        wanted = list(range(lm.n_layers))
    given = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
    if not given:
        raise UserError('coders: layers is an empty list; give layer numbers, or "all"')
    nested = [isinstance(entry, list | tuple) for entry in given]
    has_several_sites = WIRINGS[kind].has_several_sites
    if any(nested) and not (has_several_sites and all(nested)):
        raise UserError(
            f"coders: layers {given!r} has lists in a list: that is for several coders of wiring {_SEVERAL}, each a "
            "list of its own; give plain numbers"
        )
    if any(nested):
        groups = [list(entry) for entry in given]
    else:
        groups = [given] if has_several_sites else [[layer] for layer in given]
    for group in groups:
        for layer in group:
            _check_layer(layer, lm)
    return groups


def _check_layer(layer: Any, lm: ModelFacts) -> None:
    if not isinstance(layer, int) or isinstance(layer, bool) or not 0 <= layer < lm.n_layers:
        raise UserError(
            f"coders: layer {layer!r} does not exist: the model has {lm.n_layers} layers; "
            f'choose from 0 to {lm.n_layers - 1}, or "all"'
        )
