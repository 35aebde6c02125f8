"""Runs what a verb does and turns every mistake into one sentence.

Exit status: 0 done, 2 the user's mistake, 1 ours, 130 stopped on request with everything saved.
"""

import importlib
from typing import Any

from rich.console import Console

from panscope.types import UserError


def execute(flags: Any, console: Console) -> int:
    """Run the action of the module that is named as that of the flags; the exit status."""
    try:
        action = importlib.import_module(f"panscope.cli.actions.{type(flags).__module__.rpartition('.')[2]}")
        return action.run(flags, console)
    except UserError as error:
        return _mistake(str(error))
    except OSError as error:
        where = f"{str(error.filename)!r}: " if error.filename else ""
        return _mistake(f"the system refused {where}{error.strerror or error}; check the path and its permissions")
    except KeyboardInterrupt as interrupt:
        resume = interrupt.args[0] if interrupt.args else "the same command"
        said = f"Stopped at once; what was saved is safe. To continue: {resume}"
        Console(stderr=True).print(said, highlight=False)
        return 130


def _mistake(sentence: str) -> int:
    """Show what is wrong; the exit status for it."""
    console = Console(stderr=True)
    console.print("Error: ", style="bold red", end="")
    console.print(sentence, markup=False, highlight=False, emoji=False, soft_wrap=True)
    return 2
