"""`panscope export`: our coders in another tool's format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from panscope.cli.flags import flag
from panscope.cli.units import counted
from panscope.config import expanded
from panscope.publish.export import export


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

    def run(self, console: Console) -> int:
        """Do it; the exit status."""
        written = export(self.coder, self.format, self.out)
        is_one = written == [expanded(self.out)]
        what = "The coder is" if is_one else f"{counted(len(written), 'coder')} written, a folder each,"
        console.print(f"{what} in {self.out}", markup=False, highlight=False, soft_wrap=True)
        return 0
