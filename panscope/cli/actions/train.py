"""`panscope train`: a suite file, a built-in suite or flags -> a run folder with trained, evaluated coders."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from panscope import api
from panscope.api.verbs import free_folder
from panscope.cli.flags.train import Train
from panscope.cli.listening import listening, say
from panscope.cli.suite_flags import suite_from
from panscope.planning.plan import SuiteConfig
from panscope.runs.run import Run
from panscope.storage.atomic import WriteError
from panscope.types import UserError

_NOT_OF_THE_SUITE = ("out", "resume", "profile", "accept_changed_model", "track", "log")
_WITH_RESUME = ("resume", "device", "profile", "accept_changed_model", "track", "log")


def run(flags: Train, console: Console) -> int:
    """Train or resume, and print the table."""
    how = {"profile": flags.profile, "accept_changed_model": flags.accept_changed_model}
    with listening(console, track=flags.track, log=flags.log) as heard:
        if flags.resume is not None:
            _check_alone(flags)
            folder = flags.resume
            with _saying_how_to_resume(folder):
                results = api.resume(folder, device=flags.device, **how, **heard)
        else:
            suite = _suite(flags)
            if flags.accept_changed_model and suite.activations.source == "live":
                raise UserError(
                    "--accept-changed-model goes with --resume, --store or --servers: a new run on live activations "
                    "has no earlier model, so leave it out"
                )
            folder = flags.out or free_folder(suite)
            with _saying_how_to_resume(folder):
                results = api.train(suite, folder, **how, **heard)
    if results is None:
        say(console, f"Stopped; everything is saved. To continue: panscope train --resume {folder}")
        return 130
    console.print(results)
    say(console, f"Results are in {folder}")
    say(console, f"All figures as one page: panscope report {folder}")
    return 0


def _check_alone(flags: Train) -> None:
    for name, value in vars(flags).items():
        if value is not None and value is not False and name not in _WITH_RESUME:
            raise UserError(
                f"a run is resumed as it was begun, so --{name.replace('_', '-')} cannot be combined with --resume: "
                "leave it out, or start a new run"
            )


def _suite(flags: Train) -> SuiteConfig:
    """The suite file or built-in suite with the flags on top, or a suite made of flags alone."""
    given = {name: value for name, value in vars(flags).items() if value is not None and value is not False}
    own = {name: value for name, value in given.items() if name not in _NOT_OF_THE_SUITE}
    return suite_from(own.pop("suite", None), own)


@contextmanager
def _saying_how_to_resume(folder: Path) -> Iterator[None]:
    """Where a run is interrupted, or the disk refuses a write, say with which command it is resumed."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"panscope train --resume {folder}") from None
    except WriteError as error:
        if not Run(folder).suite_file.is_file():
            raise
        raise UserError(f"{error}, then continue by: panscope train --resume {folder}") from error
