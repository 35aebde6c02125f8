"""`panscope report`: the figures of one run, or of several beside each other, as one page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from panscope.cli.flags.flag import flag


@dataclass(frozen=True)
class Report:
    """Draw every figure of a run's results: a page that opens without network, and each figure as SVG and CSV.

    For example
      panscope report runs/demo                              into runs/demo/report/index.html
      panscope report runs/a runs/b --out reports/a-and-b    two runs in the same figures
      panscope report runs/theirs runs/ours --eval text --out reports/both    measured on the same --text
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, flag("RUN [RUN ...]")]
    """The folders of runs."""
    out: Annotated[Path | None, flag("DIR")] = None
    """Where the report goes, if not into the run's own folder; needed for several runs."""
    eval: Annotated[str | None, flag("LABEL")] = None
    """Whose numbers are drawn; left out, those on held-out text, or of the only other evaluation that all runs have."""
