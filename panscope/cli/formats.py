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
        table = Table("--format")
        for heading in ("what it is", "imports", "exports", "import needs"):
            table.add_column(heading, overflow="fold")
        for format in FORMATS.values():
            imports, exports = " ".join(format.imports), " ".join(format.exports)
            table.add_row(format.name, format.says, imports, exports, format.needs or "-")
        console.print(table)
        return 0
