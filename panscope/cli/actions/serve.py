"""`panscope serve`: one slice of a store, kept in memory window by window, to any number of trainers."""

import dataclasses
import time

from rich.console import Console

from panscope.cli.flags.serve import Serve
from panscope.cli.listening import say
from panscope.runs.serving import ServeOptions, serve_until_stopped
from panscope.types import UserError

_SHORTEST_LOG = 0.1


def run(flags: Serve, console: Console) -> int:
    """Serve until it is stopped."""
    if not flags.log_every >= _SHORTEST_LOG:
        raise UserError(f"log-every is {flags.log_every}: give at least {_SHORTEST_LOG:g}")
    fields = {field.name: getattr(flags, field.name) for field in dataclasses.fields(ServeOptions)}

    def log(line: str) -> None:
        say(console, f"{time.strftime('%T')} {line}")

    serve_until_stopped(flags.store, ServeOptions(**fields), log, log_every=flags.log_every)
    return 0
