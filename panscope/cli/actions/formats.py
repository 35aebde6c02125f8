"""`panscope formats`: which other tools' coders are read and written."""

from rich.console import Console
from rich.padding import Padding

from panscope.cli.flags.formats import Formats
from panscope.extensions import names_of
from panscope.formats import FORMATS, format_named


def run(flags: Formats, console: Console) -> int:
    """Print the list."""
    for format in (*FORMATS.values(), *map(format_named, names_of("formats"))):
        console.print(f"[bold]{format.name}[/bold]", highlight=False)
        said = [format.description, f"imports {' '.join(format.imports)}", f"exports {' '.join(format.exports)}"]
        if format.needs:
            said.append(f"import needs {format.needs}")
        for line in said:
            console.print(Padding(line, (0, 0, 0, 4)), highlight=False, markup=False)
    return 0
