"""What differs between releases of transformers, and how Panscope reads either form: the only file that depends on one.

The cache of keys and values is `past_key_values` up to 5.23 and `cache` from 5.24 on, as an argument and as a field of
what a model returns. Code of a model that is loaded with `trust_remote_code` may still use the old name under a new
release, so a caller's argument is looked for under both.
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


def untested_release() -> str | None:
    """One sentence if the installed transformers is newer than the release Panscope was tested with, else None."""
    tested = json.loads(builtin.TESTED_VERSIONS.read_text(encoding="utf-8"))["transformers"][-1]
    if Version(transformers.__version__) <= Version(tested):
        return None
    return f"transformers {transformers.__version__} is newer than {tested}, the release Panscope was tested with"


def cache_argument(model: nn.Module) -> str:
    """The keyword under which `model.forward` takes a cache; raises RuntimeError if it takes none."""
    parameters = inspect.signature(model.forward).parameters
    for name in _CACHE_NAMES:
        if name in parameters:
            return name
    raise RuntimeError(f"{type(model).__name__}.forward takes none of the arguments {', '.join(_CACHE_NAMES)}")


def cache_in_arguments(arguments: Mapping[str, Any]) -> Any:
    """The cache that a model is called with, or None."""
    return _first(arguments)


def cache_in_output(output: Any) -> Any:
    """The cache that a model returns, or None where it returns none."""
    return _first(dict(output.items())) if isinstance(output, Mapping) else None


def _first(fields: Mapping[str, Any]) -> Any:
    """The first value that is not None; ModelOutput warns when it is asked for the old name, a plain dict does not."""
    return next((fields[name] for name in _CACHE_NAMES if fields.get(name) is not None), None)
