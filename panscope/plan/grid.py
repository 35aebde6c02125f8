"""The grids of a suite file: each `[[coders]]` table is the product of its lists."""

import itertools
from typing import Any

from panscope import coders
from panscope.config import unknown_key
from panscope.lms.facts import ModelFacts
from panscope.plan.wirings import wirings
from panscope.train.schedule import TrainingConfig
from panscope.types import UserError

FROM_THE_MODEL = ("d_in", "d_out")
"""Fields of a coder that no table may set."""
_WHICH = ("wiring", "sites", "layers", "recipe", "width", "expansion", "tag", "convert_to", "tokens")
_LISTS = ("adam_betas", "prefixes")
"""Fields whose one value is itself a list; a list of lists is a choice."""


def grid_points(table: dict[str, Any], lm: ModelFacts) -> list[dict[str, Any]]:
    """Every point of one `[[coders]]` table: a dict of single values, its Wiring under `wiring`."""
    _check_keys(table)
    lists = {key: _choices(key, value) for key, value in table.items() if key != "layers"}
    kinds, sites = lists.pop("wiring", ["sae"]), lists.pop("sites", None)
    here = {"wiring": [w for kind in kinds for w in wirings(kind, sites, table.get("layers", "all"), lm)]} | lists
    return [dict(zip(here, values, strict=True)) for values in itertools.product(*here.values())]


def _choices(key: str, value: Any) -> list[Any]:
    choices = list(value) if isinstance(value, list | tuple) else [value]
    if not choices and key != "prefixes":
        raise UserError(f"coders: {key!r} is an empty list; give at least one value or leave it out")
    if key in _LISTS and not (choices and isinstance(choices[0], list | tuple)):
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
