"""Recipes: a paper's hyper-parameters as data, and the stated rules that fit them to a run of another length.

A recipe file gives `[fields]` as the paper has them, `[shares]` for steps that the paper gives as a share of the run,
`[at_most]` for the largest share of a run that a warm-up may take, and `[short_run]` for what must be larger where
steps are few: in a run of S steps, S below the reference, each field of `grows` is multiplied by (reference_steps / S)
** power, up to its bound there. What comes out is written into the run's suite.toml, number by number.
"""

import math
from typing import Any

from pydantic import Field

from panscope import recipes
from panscope.config import Config, read_toml
from panscope.types import UserError


class ShortRun(Config):
    """What grows in a run shorter than the paper's."""

    reference_steps: int = Field(gt=0)
    power: float = Field(ge=0)
    grows: dict[str, float]
    """Field -> its upper bound."""


class Recipe(Config):
    """One recipe file."""

    source: str
    fields: dict[str, Any]
    shares: dict[str, float] = Field(default_factory=dict)
    at_most: dict[str, float] = Field(default_factory=dict)
    short_run: ShortRun

    def fitted(self, steps: int, batch: int) -> dict[str, Any]:
        """The fields for a run of `steps` steps of `batch` rows."""
        fields = dict(self.fields)
        fields |= {name: round(share * steps) for name, share in self.shares.items()}
        for name, share in self.at_most.items():
            unit = batch if name == "dead_window" else 1
            fields[name] = min(fields[name], max(1, round(share * steps * unit)))
        short = self.short_run
        factor = max(1.0, short.reference_steps / steps) ** short.power
        for name, most in short.grows.items():
            fields[name] = _rounded(min(fields[name] * factor, max(most, fields[name])))
        return fields


def names() -> list[str]:
    """The recipes that exist."""
    return sorted(path.stem for path in recipes.FOLDER.glob("*.toml"))


def load(name: str) -> Recipe:
    """A recipe by name; raises UserError naming those that exist."""
    if name not in names():
        raise UserError(f"recipe {name!r} is unknown: use one of {', '.join(names())}")
    return Recipe.read(read_toml(recipes.FOLDER / f"{name}.toml"), f"recipe {name}")


def _rounded(value: float, digits: int = 3) -> float:
    """Three significant digits: enough, and pleasant to read in suite.toml."""
    return round(value, digits - 1 - math.floor(math.log10(value)))
