"""A run as a repository of the Hugging Face hub: composed in a folder of its own, then sent."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from panscope.events import Reporter
from panscope.publishing.card import check_licence
from panscope.publishing.compose import Composed, compose
from panscope.publishing.export import check_free, new_folder
from panscope.publishing.figures import card_figures
from panscope.publishing.hub_upload import Sent, check_repository, check_token, send
from panscope.reporting.runs import read_runs
from panscope.runs.run import Run
from panscope.storage.atomic import writing
from panscope.storage.locks import locked


@dataclass(frozen=True)
class PublishOptions:
    """How a run is published. Raises UserError for a licence that is not written as the hub writes it."""

    licence: str = "cc-by-4.0"
    """As the hub writes it: cc-by-4.0, apache-2.0, mit ..."""
    label: str | None = None
    """The evaluation whose numbers are published; None for that on held-out text, or the only one there is."""
    private: bool = False
    """Whether the repository is to be private."""
    dry_run: Path | None = None
    """A new folder that what would be sent is written into; then nothing is sent."""

    def __post_init__(self) -> None:
        check_licence(self.licence)


@dataclass(frozen=True)
class Published:
    """What publishing a run came to."""

    composed: Composed
    """What was written, and what was left out of it."""
    label: str | None
    """The evaluation whose numbers are in it; None for a run that was never measured."""
    sent: Sent | None
    """None where nothing was sent."""


def publish_run(run: Run, repository: str, options: PublishOptions, reporter: Reporter) -> Published:
    """Send every coder of a run with a model card, or with `dry_run` write what would be sent into that new folder.

    Raises UserError, before any work is done, for a repository that cannot be, and without a token.
    """
    check_repository(repository)
    chosen = run.chosen_label(options.label)
    figures = card_figures(read_runs([run]), chosen)

    def fill(folder: Path) -> Composed:
        made = compose(run, folder, repository=repository, licence=options.licence, label=chosen, figures=figures)
        for line in _lines(made, options.licence, chosen):
            reporter.say(line)
        return made

    if options.dry_run is not None:
        check_free(options.dry_run, "dry-run")
        with new_folder(options.dry_run) as fresh:
            return Published(fill(fresh), chosen, None)
    check_token()
    with _scratch_folder(run) as folder:
        made = fill(folder)
        return Published(made, chosen, send(folder, repository, private=options.private, reporter=reporter))


@contextlib.contextmanager
def _scratch_folder(run: Run) -> Iterator[Path]:
    """An empty folder within the run, gone at the end; what a killed process left in it is removed first."""
    place = run.path / ".publish.tmp"
    with writing(place):
        place.mkdir(exist_ok=True)
    with locked(place):
        files = place / "files"
        shutil.rmtree(files, ignore_errors=True)
        try:
            with writing(files):
                files.mkdir()
            yield files
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _lines(made: Composed, licence: str, label: str | None) -> list[str]:
    """What there is to know before it is public."""
    lines = [f"{len(made.coders)} coders under the licence {licence}"]
    lines += [] if label is None else [f"the numbers are those of the evaluation {label}"]
    lines += [f"{name} is not for SAELens: {reason}" for name, reason in made.left_out_of_saelens.items()]
    if made.not_measured:
        lines.append(f"{len(made.not_measured)} coders were not measured, such as {made.not_measured[0]}")
    return lines
