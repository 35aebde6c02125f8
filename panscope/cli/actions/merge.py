"""`panscope merge`: runs of one suite become one run."""

from rich.console import Console

from panscope import api
from panscope.cli.flags.merge import Merge
from panscope.cli.listening import listening, say
from panscope.types import UserError


def run(flags: Merge, console: Console) -> int:
    """Join the runs, and print the table of all their coders."""
    if flags.out is None:
        raise UserError("--out is missing: say which run folder to make")
    with listening(console) as heard:
        results = api.merge(flags.runs, flags.out, **heard)
    console.print(results)
    say(console, f"{len(results)} coders are in {flags.out}")
    return 0
