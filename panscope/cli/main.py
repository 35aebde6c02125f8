"""The `panscope` command: parse, then load and run what the verb does.

Only the flags of the verbs are imported here; torch and everything else come when a verb is run.
"""

import functools
import importlib
import operator
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from rich.console import Console

from panscope import __version__
from panscope.cli.flags.collect import Collect
from panscope.cli.flags.doctor import Doctor
from panscope.cli.flags.evaluate import Eval
from panscope.cli.flags.export import Export
from panscope.cli.flags.formats import Formats
from panscope.cli.flags.geometry import Geometry
from panscope.cli.flags.import_ import Import
from panscope.cli.flags.merge import Merge
from panscope.cli.flags.plan import PlanSuite
from panscope.cli.flags.publish import Publish
from panscope.cli.flags.report import Report
from panscope.cli.flags.rollouts import MakeRollouts
from panscope.cli.flags.serve import Serve
from panscope.cli.flags.train import Train

_DESCRIPTION = """\
Train suites of sparse autoencoders on a language model's activations, evaluate them, draw the results.

For example
  panscope train demo              the built-in suite on the built-in model, into runs/demo
  panscope eval runs/demo          evaluate it again, or on other text
  panscope report runs/demo        every figure in one page

Every verb has its own help: panscope eval --help. The version: panscope --version"""
_VERBS = {
    "plan": PlanSuite,
    "train": Train,
    "merge": Merge,
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
    if sys.argv[1:] == ["--version"]:
        Console().print(f"panscope {__version__}", highlight=False)
        sys.exit(0)
    flags = parsed(sys.argv[1:])
    sys.exit(importlib.import_module("panscope.cli.execute").execute(flags, Console()))


def parsed(words: Sequence[str]) -> Any:
    """The flags of the verb that the words of a command line name; exits with help or with what is wrong with them.

    A verb that is named is parsed alone, so that what is said of its flags is about no other verb.
    """
    if words and words[0] in _VERBS:
        return tyro.cli(_VERBS[words[0]], prog=f"panscope {words[0]}", args=words[1:])
    verbs = functools.reduce(operator.or_, [_in_the_list(name, verb) for name, verb in _VERBS.items()])
    return tyro.cli(verbs, prog="panscope", description=_DESCRIPTION, args=words)


def _in_the_list(name: str, verb: Any) -> Any:
    """A verb with one line of its text."""
    return Annotated[verb, tyro.conf.subcommand(name, description=(verb.__doc__ or "").partition("\n")[0])]


if __name__ == "__main__":
    main()
