"""The `panscope` command: parse, run, and turn every mistake into one sentence.

Exit status: 0 done, 2 the user's mistake, 1 ours, 130 stopped on request with everything saved.
"""

import functools
import operator
import sys
from typing import Annotated, Any

import tyro
from rich.console import Console

from panscope.cli.collect import Collect
from panscope.cli.doctor import Doctor
from panscope.cli.evaluate import Eval
from panscope.cli.export import Export
from panscope.cli.formats import Formats
from panscope.cli.geometry import Geometry
from panscope.cli.import_ import Import
from panscope.cli.plan import PlanSuite
from panscope.cli.publish import Publish
from panscope.cli.report import Report
from panscope.cli.rollouts import MakeRollouts
from panscope.cli.serve import Serve
from panscope.cli.train import Train
from panscope.types import UserError

_DESCRIPTION = """\
Train suites of sparse autoencoders on a language model's activations, measure them, draw what came out.

For example
  panscope train demo              the built-in suite on the built-in model, into runs/demo
  panscope eval runs/demo          measure it again, or on other text
  panscope report runs/demo        every figure in one page

Every verb has its own help: panscope eval --help"""
_VERBS = {
    "plan": PlanSuite,
    "train": Train,
    "collect": Collect,
    "serve": Serve,
    "eval": Eval,
    "rollouts": MakeRollouts,
    "geometry": Geometry,
    "report": Report,
    "formats": Formats,
    "import": Import,
    "export": Export,
    "publish": Publish,
    "doctor": Doctor,
}


def main() -> None:
    """Run the command line and exit."""
    command = tyro.cli(_commands(), prog="panscope", description=_DESCRIPTION)  # type: ignore[arg-type]
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


def _commands() -> Any:
    """Every verb: one line each in the list of them, its whole text where it is named."""
    is_named = len(sys.argv) > 1 and sys.argv[1] in _VERBS
    verbs: list[Any] = []
    for name, verb in _VERBS.items():
        line = None if is_named else (verb.__doc__ or "").partition("\n")[0]
        verbs.append(Annotated[verb, tyro.conf.subcommand(name, description=line)])
    return functools.reduce(operator.or_, verbs)


def _mistake(sentence: str) -> int:
    """Show what is wrong; the exit status for it."""
    console = Console(stderr=True)
    console.print("Error: ", style="bold red", end="")
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    return 2


if __name__ == "__main__":
    main()
