"""The `panscope` command: parse, run, and turn every mistake into one sentence.

Exit status: 0 done, 2 the user's mistake, 1 ours, 130 stopped on request with everything saved.
"""

import functools
import operator
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from rich.console import Console

from panscope import __version__
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

Every verb has its own help: panscope eval --help. The version: panscope --version"""
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
    console = Console()
    if sys.argv[1:] == ["--version"]:
        console.print(f"panscope {__version__}", highlight=False)
        sys.exit(0)
    command = parsed(sys.argv[1:])
    try:
        status = command.run(console)
    except UserError as error:
        status = _mistake(str(error))
    except OSError as error:
        where = f"{str(error.filename)!r}: " if error.filename else ""
        status = _mistake(f"the system refused {where}{error.strerror or error}; check the path and its permissions")
    except KeyboardInterrupt as interrupt:
        resume = interrupt.args[0] if interrupt.args else "the same command"
        said = f"Stopped at once; what was saved is safe. To go on: {resume}"
        Console(stderr=True).print(said, highlight=False)
        status = 130
    sys.exit(status)


def parsed(words: Sequence[str]) -> Any:
    """The verb that the words of a command line mean; exits with help or with what is wrong with them.

    A verb that is named is parsed alone, so that what is said of its flags is about no other verb.
    """
    if words and words[0] in _VERBS:
        return tyro.cli(_VERBS[words[0]], prog=f"panscope {words[0]}", args=words[1:])
    verbs = functools.reduce(operator.or_, [_in_the_list(name, verb) for name, verb in _VERBS.items()])
    return tyro.cli(verbs, prog="panscope", description=_DESCRIPTION, args=words)


def _in_the_list(name: str, verb: Any) -> Any:
    """A verb with one line of its text."""
    return Annotated[verb, tyro.conf.subcommand(name, description=(verb.__doc__ or "").partition("\n")[0])]


def _mistake(sentence: str) -> int:
    """Show what is wrong; the exit status for it."""
    console = Console(stderr=True)
    console.print("Error: ", style="bold red", end="")
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    return 2


if __name__ == "__main__":
    main()
