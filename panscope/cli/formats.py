"""`panscope formats`: which other tools' coders are read and written."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from panscope.formats import FORMATS


@dataclass(frozen=True)
class Formats:
    """List the formats that `panscope import` reads and `panscope export` writes.

    For example
      panscope formats
    """

    def run(self, console: Console) -> int:
        """Do it; the exit status."""
        table = Table("--format", "what it is")
        for format in FORMATS.values():
            table.add_row(format.name, format.says)
        console.print(table)
        return 0
