"""Optional dependencies: imported when they are needed, and named with the pip command where they are missing."""

import importlib
from typing import Any

from panscope.types import UserError


def optional(module: str, *, extra: str) -> Any:
    """The module `module` of an optional dependency; raises UserError, naming the `extra` to install, without it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = module.partition(".")[0]
        if error.name != missing:
            raise
        raise UserError(f"this needs {missing}, which is not installed: pip install 'panscope[{extra}]'") from None
