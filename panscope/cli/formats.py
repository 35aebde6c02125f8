"""`panscope formats`: which other tools' coders are read and written."""

from dataclasses import dataclass

from rich.console import Console
from rich.padding import Padding

from panscope.formats import FORMATS


@dataclass(frozen=True)
class Formats:
    """List the formats that `panscope import` reads and `panscope export` writes.

    For example
      panscope formats
    """

    def run(self, console: Console) -> int:
        """Do it; the exit status."""
        for format in FORMATS.values():
            console.print(f"[bold]{format.name}[/bold]", highlight=False)
            said = [format.says, f"imports {' '.join(format.imports)}", f"exports {' '.join(format.exports)}"]
            if format.needs:
                said.append(f"import needs {format.needs}")
            for line in said:
                console.print(Padding(line, (0, 0, 0, 4)), highlight=False, markup=False)
        return 0
