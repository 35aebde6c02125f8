"""Choosing some coders of a suite: by wiring, sites, layers and width.

Each coder is kept as it is or left out, so suites of several wirings and recipes stay what they are. The chosen suite
has a `[[coders]]` table for each coder, with every number written out.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from panscope.lms.facts import ModelFacts
from panscope.planning.coder import PlannedCoder
from panscope.planning.plan import SuiteConfig, planned_coders
from panscope.planning.wirings import site_text
from panscope.types import UserError


@dataclass(frozen=True)
class Selection:
    """Which coders: a coder has to match every field that is not empty."""

    wirings: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    """As in a suite file: `resid_post`, `mlp_in_no_gain -> mlp_out`, `resid_post + mlp_out`."""
    layers: tuple[int, ...] = ()
    """A coder over several layers matches if all of its own are named."""
    widths: tuple[int, ...] = ()
    """Numbers of latents."""


_VALUES: dict[str, Callable[[PlannedCoder], set[Any]]] = {
    "wiring": lambda planned: {planned.wiring.wiring},
    "sites": lambda planned: {site_text(planned.wiring)},
    "layers": lambda planned: {site.layer for site in planned.wiring.sites()},
    "widths": lambda planned: {planned.coder.width},
}
"""What a coder has of each field; it matches if all of that is asked for."""


def select(suite: SuiteConfig, lm: ModelFacts, asked: Selection) -> SuiteConfig:
    """The suite with the matching coders only; raises UserError, which names what there is, where none matches.

    What a plan derives from all of its coders, such as the rows of the shuffle buffer, then follows from these.
    """
    sites = tuple(map(_spaced, asked.sites))
    wanted = {"wiring": asked.wirings, "sites": sites, "layers": asked.layers, "widths": asked.widths}
    points = planned_coders(suite, lm)
    every = [planned for planned, _ in points]
    left = every
    for field, chosen in wanted.items():
        if chosen:
            _check_known(suite, field, chosen, every)
            matching = [planned for planned in left if _VALUES[field](planned) <= set(chosen)]
            if not matching:
                raise UserError(
                    f"{field} {_listed(chosen)}: no coder of {suite.name} matches that and the rest of the selection, "
                    f"which leaves {field} {_there_is(field, left)}"
                )
            left = matching
    names = {planned.name for planned in left}
    return suite.replace(coders=tuple(table for planned, table in points if planned.name in names))


def _check_known(suite: SuiteConfig, field: str, chosen: Sequence[Any], every: list[PlannedCoder]) -> None:
    """Raise UserError for a value that no coder of the suite has."""
    known = set().union(*(_VALUES[field](planned) for planned in every))
    unknown = [value for value in chosen if value not in known]
    if unknown:
        raise UserError(
            f"{field} {_listed(unknown)}: no coder of {suite.name} has that; there is {_there_is(field, every)}"
        )


def _there_is(field: str, coders: list[PlannedCoder]) -> str:
    """What coders have of a field; of one over several layers, all of them joined."""
    found = {tuple(sorted(_VALUES[field](planned))) for planned in coders}
    return _listed(" + ".join(map(str, values)) for values in sorted(found))


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def _spaced(site: str) -> str:
    """`a->b` as `a -> b`, which is how suite files have it."""
    return " -> ".join(" + ".join(kind.strip() for kind in side.split("+")) for side in site.split("->"))
