"""The `panscope` command: parse, run, and turn every mistake into one sentence.

Exit status: 0 done, 2 the user's mistake, 1 ours, 130 stopped on request with everything saved.
"""

import sys
from typing import Annotated

import tyro
from rich.console import Console

from panscope.cli.doctor import Doctor
from panscope.cli.evaluate import Eval
from panscope.cli.plan import PlanSuite
from panscope.cli.train import Train
from panscope.types import UserError

_Command = (
    Annotated[PlanSuite, tyro.conf.subcommand("plan")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def main() -> None:
    """Run the command line and exit."""
    command = tyro.cli(_Command, prog="panscope", description="Suites of sparse autoencoders.")  # type: ignore[arg-type]
    try:
        status = command.run(Console())
    except UserError as error:
        console = Console(stderr=True)
        console.print("Error: ", style="bold red", end="")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        status = 2
    except KeyboardInterrupt:
        said = "Stopped at once; what was saved is safe, and panscope train --resume RUN goes on with a run."
        Console(stderr=True).print(said, highlight=False)
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
