"""The `panscope` command: parse, run, and turn every mistake into one sentence.

Exit status: 0 done, 2 the user's mistake, 1 ours, 130 stopped on request with everything saved.
"""

import sys
from typing import Annotated

import tyro
from rich.console import Console

from panscope.cli.collect import Collect
from panscope.cli.doctor import Doctor
from panscope.cli.evaluate import Eval
from panscope.cli.geometry import Geometry
from panscope.cli.plan import PlanSuite
from panscope.cli.report import Report
from panscope.cli.rollouts import MakeRollouts
from panscope.cli.serve import Serve
from panscope.cli.train import Train
from panscope.types import UserError

_Command = (
    Annotated[PlanSuite, tyro.conf.subcommand("plan")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Collect, tyro.conf.subcommand("collect")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[MakeRollouts, tyro.conf.subcommand("rollouts")]
    | Annotated[Geometry, tyro.conf.subcommand("geometry")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def main() -> None:
    """Run the command line and exit."""
    command = tyro.cli(_Command, prog="panscope", description="Suites of sparse autoencoders.")  # type: ignore[arg-type]
    try:
        status = command.run(Console())
    except UserError as error:
        status = _mistake(str(error))
    except OSError as error:
        where = f"{str(error.filename)!r}: " if error.filename else ""
        status = _mistake(f"the system refused {where}{error.strerror or error}; check the path and its permissions")
    except KeyboardInterrupt:
        said = (
            "Stopped at once; what was saved is safe. panscope train --resume RUN goes on with a run, the same command "
            "with a store."
        )
        Console(stderr=True).print(said, highlight=False)
        status = 130
    sys.exit(status)


def _mistake(sentence: str) -> int:
    """Show what is wrong; the exit status for it."""
    console = Console(stderr=True)
    console.print("Error: ", style="bold red", end="")
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    return 2


if __name__ == "__main__":
    main()
