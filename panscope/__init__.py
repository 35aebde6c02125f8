"""Panscope trains, evaluates and publishes suites of sparse autoencoders on language models.

The names of `panscope.api` can be taken from here too (`panscope.train`, `panscope.load`): they are imported, and torch
with them, when the first of them is used.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from panscope.api import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """A module of the package, or a name of `panscope.api`."""
    if not name.startswith("_"):
        if importlib.util.find_spec(f"panscope.{name}") is not None:
            return importlib.import_module(f"panscope.{name}")
        api = importlib.import_module("panscope.api")
        if name in api.__all__:
            return getattr(api, name)
    raise AttributeError(f"module 'panscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *importlib.import_module("panscope.api").__all__})
