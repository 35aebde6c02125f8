"""`panscope publish`: a run as a repository of the Hugging Face hub, with a model card."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from panscope.cli.flags import flag
from panscope.config import expanded
from panscope.publish.card import check_licence
from panscope.publish.compose import Composed, compose
from panscope.publish.export import check_free, new_folder
from panscope.publish.figures import card_figures
from panscope.publish.hub_upload import check_repository, check_token, send
from panscope.report.runs import read_runs
from panscope.runs.eval_selection import label_to_publish
from panscope.runs.run import RunFolder
from panscope.storage.atomic import writing
from panscope.storage.locks import locked


@dataclass(frozen=True)
class Publish:
    """Publish every coder of a run: a folder each that SAELens loads by its name, and a model card with the numbers.

    What failed or was killed goes on where it was when the same command is given again. The token is the hub's own:
    HF_TOKEN in the environment, or what `hf auth login` left.

    For example
      panscope publish runs/demo --to me/demo-saes --dry-run look/     what would be sent, in a folder
      panscope publish runs/demo --to me/demo-saes --private
    """

    run_folder: Annotated[Path, tyro.conf.Positional, flag("RUN")]
    """The folder of a run."""
    to: Annotated[str, flag("ORG/NAME")]
    """The repository, which is made if it is not there."""
    licence: Annotated[str, flag("NAME")] = "cc-by-4.0"
    """As the hub writes it: cc-by-4.0, apache-2.0, mit ..."""
    eval: Annotated[str | None, flag("LABEL")] = None
    """Whose numbers are published; left out, those on held-out text, or of the only evaluation there is."""
    private: bool = False
    """Make it a private repository."""
    dry_run: Annotated[Path | None, flag("DIR")] = None
    """Send nothing: write what would be sent into this new folder."""

    def run(self, console: Console) -> int:
        """Do it; the exit status."""
        run = RunFolder.open(self.run_folder)
        check_repository(self.to)
        check_licence(self.licence)
        label = label_to_publish(run, self.eval)
        figures = card_figures(read_runs([self.run_folder]), label)

        def say(line: str) -> None:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

        def fill(folder: Path) -> None:
            made = compose(run, folder, repository=self.to, licence=self.licence, label=label, figures=figures)
            for line in _lines(made, self.licence, label):
                say(line)

        if self.dry_run is not None:
            out = expanded(self.dry_run)
            check_free(out, "dry-run")
            with new_folder(out) as fresh:
                fill(fresh)
            say(f"nothing was sent; what would be is in {self.dry_run}")
            return 0
        check_token()
        with _folder_of_its_own(run) as folder:
            fill(folder)
            sent = send(folder, self.to, private=self.private, say=say)
        say(f"{sent.files} files sent, {sent.there} were there: {sent.url}")
        return 0


@contextlib.contextmanager
def _folder_of_its_own(run: RunFolder) -> Iterator[Path]:
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
