"""`panscope report`: the figures of one run, or of several beside each other, as one page."""

from rich.console import Console

from panscope import api
from panscope.cli.flags.report import Report
from panscope.cli.listening import say
from panscope.cli.units import counted
from panscope.runs.finished_coder import HELD_OUT
from panscope.types import UserError


def run(flags: Report, console: Console) -> int:
    """Write the report, and say where it is."""
    if not flags.runs:
        raise UserError("RUN is missing: give the folder of a run, or of several")
    if len(flags.runs) > 1 and flags.out is None:
        raise UserError(f"--out is missing: a report on {len(flags.runs)} runs belongs to none of them, so say where")
    written = api.report(flags.runs, flags.out, label=flags.eval)
    if written.label != HELD_OUT:
        say(console, f"the numbers are those of the evaluation {written.label}")
    for title, reason in written.left_out.items():
        say(console, f"left out: {title}: {reason}")
    say(console, f"{counted(len(written.figures), 'figure')} in {written.page}; open it in a browser")
    return 0
