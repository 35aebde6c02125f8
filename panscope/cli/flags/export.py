"""`panscope export`: our coders in another tool's format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from panscope.cli.flags.flag import flag


@dataclass(frozen=True)
class Export:
    """Write a coder, or every coder of a run, for another tool: on raw activations, with both names of its site.

    For example
      panscope export runs/demo/coders/L03R-4x-topk-k16 --format saelens --out exported/L03R
      panscope export runs/demo --format saelens --out exported/demo        a folder a coder
    """

    coder: Annotated[Path, tyro.conf.Positional, flag("CODER")]
    """The folder of a coder, RUN/coders/NAME; or a run."""
    format: Annotated[str, flag("NAME")]
    """One of `panscope formats`."""
    out: Annotated[Path, flag("DIR")]
    """The folder to make."""
