"""Train and evaluate from a notebook: the stages of a run without a terminal."""

from pathlib import Path
from typing import Any

from panscope import suites
from panscope.config import read_toml
from panscope.lms.load import load
from panscope.records import RunFolder, locked
from panscope.suite import stages
from panscope.suite.eval_files import Results
from panscope.suite.evaluating import HELD_OUT_REQUEST, Request, evaluate_run
from panscope.suite.plan import SuiteConfig
from panscope.suite.reporter import Reporter, Silent
from panscope.types import UserError

Suite = SuiteConfig | dict[str, Any] | Path | str


def train(suite: Suite, out: Path | str | None = None, *, reporter: Reporter | None = None) -> Results | None:
    """Train, save and evaluate a suite: a SuiteConfig, its tables as a dict, a .toml file or a built-in suite's name.

    The run folder `out` (`runs/<name>` where it is left out) must not exist; one that does is gone on with by
    `panscope train --resume`. Gives every coder's eval.json (docs/reference.md explains and cites every number), or
    None where it was stopped by Ctrl-C. Recipes of the papers: docs/recipes.md. Raises UserError, before anything is
    written, for what cannot be.
    """
    config = _suite(suite)
    return stages.start(config, Path(out or Path("runs") / config.name), reporter or Silent())


def evaluate(
    run: Path | str, request: Request = HELD_OUT_REQUEST, *, reporter: Reporter | None = None
) -> Results | None:
    """Measure every coder of a run, on its held-out text or as `request` says, and write what came out into the run.

    Gives every coder's eval.json, or None where the request is a share of the work and others have not ended theirs.
    Raises UserError where there is nothing to measure or another process works on the run.
    """
    folder = RunFolder.open(run)
    suite = stages.read_suite(folder.suite_file)
    lm = load(request.model or suite.model)
    if request.share.of > 1:
        return evaluate_run(folder, suite, lm, reporter or Silent(), request)
    with locked(folder.path):
        return evaluate_run(folder, suite, lm, reporter or Silent(), request)


def _suite(suite: Suite) -> SuiteConfig:
    if isinstance(suite, SuiteConfig):
        return suite
    if isinstance(suite, dict):
        return SuiteConfig.read(suite, "the suite")
    built_in = suites.FOLDER / f"{suite}.toml"
    path = Path(suite) if Path(suite).suffix == ".toml" else built_in
    if path == built_in and not path.is_file():
        known = ", ".join(sorted(one.stem for one in suites.FOLDER.glob("*.toml")))
        raise UserError(f"suite {str(suite)!r} is neither a .toml file nor a built-in suite: give one of {known}")
    return SuiteConfig.read(read_toml(path), str(suite))
