"""The tools whose training steps are compared; a module for each tool knows how to run its step.

A contestant is a tool at one of its settings, named by both: `saelens bf16 compiled`. The interface of a tool's module
is `Tool`.
"""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from benchmarks.step.case import Case
from panscope.types import UserError

MODULES = {
    "panscope": "benchmarks.step.panscope_step",
    "sparsify": "benchmarks.step.sparsify_step",
    "saelens": "benchmarks.step.saelens_step",
    "dictionary_learning": "benchmarks.step.dictionary_learning_step",
}
"""Imported only when the tool is asked for, so that the others need not be installed."""


@dataclass(frozen=True)
class Contestant:
    """One tool at one setting, ready for its first step."""

    step: Callable[[Tensor], object]
    """Learn from rows [B, D]: forward, loss, backward, Adam, constraints."""
    l0: Callable[[Tensor], float]
    """The mean number of active latents over rows [B, D]; changes nothing."""
    parameters: Callable[[], Iterable[Tensor]]
    """All trained parameters; Adam keeps two moments for each."""

    def held_bytes(self) -> int:
        """Bytes of the parameters and Adam's moments."""
        return 3 * sum(tensor.numel() * tensor.element_size() for tensor in self.parameters())


class Tool(Protocol):
    """What each module of `MODULES` defines."""

    VERSION: str

    def settings(self, case: Case) -> list[str]:
        """The names of the settings that fit a case; "" is the name of the plain setting."""
        ...

    def build(self, case: Case, setting: str, batches: list[Tensor]) -> Contestant:
        """The tool at one setting, before its first step."""
        ...


def module(tool: str) -> Any:
    """The module of a tool, a `Tool`; raises UserError for an unknown tool."""
    if tool not in MODULES:
        raise UserError(f"tool {tool!r} is unknown: use one of {', '.join(MODULES)}")
    return importlib.import_module(MODULES[tool])


def names(case: Case, tools: Iterable[str]) -> list[str]:
    """The names of all contestants of these tools that fit a case."""
    return [f"{tool} {setting}".strip() for tool in tools for setting in module(tool).settings(case)]


def tool_of(name: str) -> str:
    """The tool of the contestant `name`."""
    return name.partition(" ")[0]


def build(case: Case, name: str, batches: list[Tensor]) -> Contestant:
    """The contestant `name`, before its first step."""
    tool, _, setting = name.partition(" ")
    return module(tool).build(case, setting, batches)
