"""`panscope merge`: runs of one suite become one run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from panscope.cli.flags.flag import flag


@dataclass(frozen=True)
class Merge:
    """Join finished runs of one suite, such as all its shares, to one run; nothing is computed again.

    For example
      panscope merge runs/gemma-scope-2b-share-*-of-35 --out runs/gemma-scope-2b
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, flag("RUN RUN ...")]
    """The folders of the runs."""
    out: Annotated[Path | None, flag("DIR")] = None
    """The run folder to make."""
