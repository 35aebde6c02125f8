"""The start of every benchmark: its command line is read into its `Options`, and mistakes end it with a message."""

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from panscope.types import UserError

Options = TypeVar("Options")


def run_command(main: Callable[[Options], None], options: type[Options]) -> None:
    """Call `main` with the command line as an object of the dataclass `options`.

    A UserError ends the process with its message and exit status 1, without a traceback.
    """
    asked = tyro.cli(options)
    try:
        main(asked)
    except UserError as error:
        sys.exit(str(error))
