"""Who takes part in a comparison of steps: each tool has a module of its own that knows how to drive it.

A module has `VERSION`, `settings(case)`, the names of its settings that fit a case ("" for its only one), and
`build(case, setting, batches)`.
"""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from benchmarks.step_case import Case
from panscope.types import UserError

MODULES = {
    "panscope": "benchmarks.step_panscope",
    "sparsify": "benchmarks.step_sparsify",
    "saelens": "benchmarks.step_saelens",
    "dictionary_learning": "benchmarks.step_dictionary_learning",
}
"""Imported when a tool takes part, so that the others need not be installed."""


@dataclass(frozen=True)
class Contestant:
    """One tool at one setting, ready to step."""

    step: Callable[[Tensor], object]
    """Learn from rows [B, D]: forward, loss, backward, Adam, constraints."""
    l0: Callable[[Tensor], float]
    """Active latents of rows [B, D], mean over rows; changes nothing."""
    parameters: Callable[[], Iterable[Tensor]]
    """Everything that is learned; Adam keeps two more of each."""

    def held_bytes(self) -> int:
        """Weights and moments."""
        return 3 * sum(tensor.numel() * tensor.element_size() for tensor in self.parameters())


class Tool(Protocol):
    """What a module of `MODULES` has."""

    VERSION: str

    def settings(self, case: Case) -> list[str]:
        """The settings that fit a case."""
        ...

    def build(self, case: Case, setting: str, batches: list[Tensor]) -> Contestant:
        """A contestant at its start."""
        ...


def module(tool: str) -> Any:
    """The module of a tool, a `Tool`; raises UserError where there is none."""
    if tool not in MODULES:
        raise UserError(f"tool {tool!r} is unknown: use one of {', '.join(MODULES)}")
    return importlib.import_module(MODULES[tool])


def names(case: Case, tools: Iterable[str]) -> list[str]:
    """Everyone who can take part in a case: a tool and its setting."""
    return [f"{tool} {setting}".strip() for tool in tools for setting in module(tool).settings(case)]


def tool_of(name: str) -> str:
    """The tool of a contestant."""
    return name.partition(" ")[0]


def build(case: Case, name: str, batches: list[Tensor]) -> Contestant:
    """The contestant of this name at its start."""
    tool, _, setting = name.partition(" ")
    return module(tool).build(case, setting, batches)
