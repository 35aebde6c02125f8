"""Recipes: a paper's hyper-parameters as data, and the stated rules that fit them to a run of another length.

A recipe file gives `[fields]` as the paper has them, `[variants.<architecture>]` for what differs between architectures
where a paper trains several, `[shares]` for steps that the paper gives as a share of the run, `[at_most]` for the
largest share of a run that a warm-up may take, and `[short_run]` for what must be larger where steps are few: in a run
of S steps, S below the reference, each field of `grows` is multiplied by (reference_steps / S) ** power, up to its
bound there. What comes out is written into the run's suite.toml, number by number.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from panscope import builtin, coders
from panscope.config import Config, read_toml
from panscope.types import UserError

_IN_ROWS = ("dead_window",)
"""Fields whose share in `[at_most]` is one of the run's rows, not of its steps."""


class ShortRun(Config):
    """What grows in a run shorter than the paper's."""

    reference_steps: int = Field(gt=0)
    power: float = Field(ge=0)
    grows: dict[str, float]
    """Field -> its upper bound."""


@dataclass(frozen=True)
class Change:
    """A field of a recipe that is fitted to the length of a run."""

    recipe: str
    """The name of the recipe."""
    field: str
    """The field of a `[[coders]]` table."""
    before: Any
    """The paper's value."""
    after: Any
    """The value in this run."""
    steps: int
    """Of this run."""
    why: str
    """How the new value was obtained."""


def changes_in_words(changes: Iterable[Change]) -> list[str]:
    """A sentence for every recipe and length of run; the same change of many coders is said once."""
    groups: dict[tuple[str, int], dict[str, dict[str, None]]] = {}
    for change in dict.fromkeys(changes):
        fields = groups.setdefault((change.recipe, change.steps), {}).setdefault(change.why, {})
        fields[f"{change.field} {_number(change.before)} -> {_number(change.after)}"] = None
    return [
        f"recipe {recipe} is fitted to {steps:,} steps: "
        + "; ".join(f"{', '.join(fields)} ({why})" for why, fields in by_reason.items())
        + "; as_published = true (--as-published) keeps its own values"
        for (recipe, steps), by_reason in groups.items()
    ]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


class Recipe(Config):
    """One recipe file."""

    name: str
    """The file's."""
    source: str
    fields: dict[str, Any]
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Architecture -> the fields laid over `fields` for it; the first one is taken where none is asked for."""
    shares: dict[str, float] = Field(default_factory=dict)
    at_most: dict[str, float] = Field(default_factory=dict)
    short_run: ShortRun

    def architectures(self) -> tuple[str, ...]:
        """Every architecture it is for, the default first."""
        return tuple(self.variants) or (self.fields["architecture"],)

    def published(self, steps: int, architecture: str | None = None) -> dict[str, Any]:
        """The fields as the paper has them; steps that it gives as a share of the run are those of a run of `steps`."""
        return self._fields(architecture) | {name: round(share * steps) for name, share in self.shares.items()}

    def changes(self, steps: int, batch: int, architecture: str | None = None) -> tuple[Change, ...]:
        """What `fitted` changes."""
        before, after = self.published(steps, architecture), self.fitted(steps, batch, architecture)
        return tuple(
            Change(self.name, name, before[name], after[name], steps, self._why(name, steps))
            for name in after
            if after[name] != before[name]
        )

    def _why(self, name: str, steps: int) -> str:
        if name in self.at_most:
            return "limited to a share of the run"
        short = self.short_run
        return f"multiplied by ({short.reference_steps:,} / {steps:,}) ^ {short.power:g}, up to a bound"

    def fitted(self, steps: int, batch: int, architecture: str | None = None) -> dict[str, Any]:
        """The fields for a run of `steps` steps of `batch` rows; raises UserError if it has no such architecture."""
        fields = self.published(steps, architecture)
        for name in self.at_most.keys() & fields:
            rows = batch if name in _IN_ROWS else 1
            fields[name] = min(fields[name], max(1, round(self.at_most[name] * steps * rows)))
        short = self.short_run
        factor = max(1.0, short.reference_steps / steps) ** short.power
        for name in short.grows.keys() & fields:
            most = max(short.grows[name], fields[name])
            fields[name] = _rounded(min(fields[name] * factor, most))
        return fields

    def _fields(self, architecture: str | None) -> dict[str, Any]:
        """`[fields]` with the variant over them, as the paper has them."""
        known = self.architectures()
        wanted = architecture or known[0]
        if wanted not in known and wanted not in coders.ARCHITECTURES:
            return self.fields | {"architecture": wanted}  # of another package: what all variants share
        if wanted not in known:
            raise UserError(
                f"architecture {wanted!r} does not go with recipe {self.name!r}, which is for {', '.join(known)}: "
                "use one of them, or leave the recipe out"
            )
        return self.fields | self.variants.get(wanted, {}) | {"architecture": wanted}


def names() -> list[str]:
    """The recipes that exist."""
    return sorted(path.stem for path in builtin.RECIPES.glob("*.toml"))


def load(name: str) -> Recipe:
    """A recipe by name; raises UserError naming those that exist."""
    if name not in names():
        raise UserError(f"recipe {name!r} is unknown: use one of {', '.join(names())}")
    return Recipe.read({"name": name} | read_toml(builtin.RECIPES / f"{name}.toml"), f"recipe {name}")


def _rounded(value: float, digits: int = 3) -> float:
    """Three significant digits: enough, and pleasant to read in suite.toml."""
    return round(value, digits - 1 - math.floor(math.log10(value)))
