"""`panscope export`: our coders in another tool's format."""

from rich.console import Console

from panscope import api
from panscope.cli.flags.export import Export
from panscope.cli.listening import say
from panscope.cli.units import counted
from panscope.config import expanded


def run(flags: Export, console: Console) -> int:
    """Write the files."""
    written = api.export(flags.coder, flags.format, flags.out)
    is_one = written == [expanded(flags.out)]
    what = "The coder is" if is_one else f"{counted(len(written), 'coder')} written, a folder each,"
    say(console, f"{what} in {flags.out}")
    return 0
