"""Differences between transformers releases that Panscope supports; no other file depends on the release.

The key-value cache is named `past_key_values` up to 5.23 and `cache` from 5.24 on, as an argument and as a field of the
output. A model's own code, loaded with `trust_remote_code`, may use the old name with a new release, so both names are
accepted.
"""

import inspect
import json
from collections.abc import Mapping
from typing import Any

import transformers
from packaging.version import Version
from torch import nn

from panscope import builtin

_CACHE_NAMES = ("cache", "past_key_values")


def untested_release() -> list[str]:
    """A warning if the installed transformers is newer than the release that Panscope was tested with, else none."""
    tested = json.loads(builtin.TESTED_VERSIONS.read_text(encoding="utf-8"))["transformers"][-1]
    if Version(transformers.__version__) <= Version(tested):
        return []
    return [f"transformers {transformers.__version__} is newer than {tested}, the release Panscope was tested with"]


def cache_argument(model: nn.Module) -> str:
    """The name of the cache argument of `model.forward`; raises RuntimeError if it has none."""
    parameters = inspect.signature(model.forward).parameters
    for name in _CACHE_NAMES:
        if name in parameters:
            return name
    raise RuntimeError(
        f"{type(model).__name__}.forward has no cache argument: expected one of {', '.join(_CACHE_NAMES)}"
    )


def cache_in_arguments(arguments: Mapping[str, Any]) -> Any:
    """The cache in the keyword arguments of a model's call, or None."""
    return _cache_field(arguments)


def cache_in_output(output: Any) -> Any:
    """The cache in a model's output, or None."""
    # As a plain dict: ModelOutput warns when it is read by the old name.
    return _cache_field(dict(output.items())) if isinstance(output, Mapping) else None


def _cache_field(fields: Mapping[str, Any]) -> Any:
    """The first of the cache's names whose value is not None, or None."""
    return next((fields[name] for name in _CACHE_NAMES if fields.get(name) is not None), None)
