"""The grids of a suite file: each `[[coders]]` table is the product of its lists."""

import itertools
from typing import Any

from panscope import coders
from panscope.config import unknown_key
from panscope.lms.model import LanguageModel
from panscope.train.schedule import TrainingConfig
from panscope.types import UserError

FROM_THE_MODEL = ("d_in", "d_out")
"""Fields of a coder that no table may set."""
_WHICH = ("wiring", "sites", "layers", "recipe", "width", "expansion", "tag", "convert_to")
_DEFAULT_SITES = {"sae": ["resid_post"], "transcoder": ["mlp_in_no_gain -> mlp_out"]}


def grid_points(table: dict[str, Any], lm: LanguageModel) -> list[dict[str, Any]]:
    """Every point of one `[[coders]]` table: a dict of single values, `site` and `layer` among them."""
    _check_keys(table)
    layers = _layers(table.get("layers", "all"), lm)
    rest = {key: value for key, value in table.items() if key != "layers"}
    lists = {key: _choices(key, value) for key, value in rest.items()}
    points = []
    for wiring in lists.pop("wiring", ["sae"]):
        if wiring not in _DEFAULT_SITES:
            raise UserError(f"coders: wiring is {wiring!r}: use one of {', '.join(_DEFAULT_SITES)}")
        here = {"layer": layers, "wiring": [wiring], "sites": _DEFAULT_SITES[wiring]} | lists
        points += [dict(zip(here, values, strict=True)) for values in itertools.product(*here.values())]
    return points


def _choices(key: str, value: Any) -> list[Any]:
    """A list is a choice of values; for Adam's betas, a pair is one value and a list of pairs a choice."""
    choices = list(value) if isinstance(value, list | tuple) else [value]
    if not choices:
        raise UserError(f"coders: {key!r} is an empty list; give at least one value or leave it out")
    if key == "adam_betas" and not isinstance(choices[0], list | tuple):
        return [value]
    return choices


def _check_keys(table: dict[str, Any]) -> None:
    known = {*_WHICH, *TrainingConfig.model_fields}
    for config, _ in coders.ARCHITECTURES.values():
        known |= set(config.model_fields)
    known -= set(FROM_THE_MODEL)
    for key in table:
        if key not in known:
            raise UserError(unknown_key(key, "coders", known))


def _layers(wanted: Any, lm: LanguageModel) -> list[int]:
    if wanted == "all":
        return list(range(lm.n_layers))
    layers = wanted if isinstance(wanted, list | tuple) else [wanted]
    if not layers:
        raise UserError('coders: layers is an empty list; give layer numbers, or "all"')
    for layer in layers:
        if not isinstance(layer, int) or not 0 <= layer < lm.n_layers:
            raise UserError(
                f"coders: layer {layer!r} does not exist: the model has {lm.n_layers} layers; "
                f'choose from 0 to {lm.n_layers - 1}, or "all"'
            )
    return list(layers)
