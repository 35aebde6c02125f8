"""Our coders in other tools' formats: a folder each, written whole or not at all.

Beside the tool's own files there is `panscope.json`: the sites by TransformerLens' and by Hugging Face's names, what
was folded, and where the coder comes from; so also formats with no place for any of it carry it.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from panscope.config import expanded
from panscope.formats import Format, format_named
from panscope.formats.site_names import exported_names
from panscope.publishing.provenance import load_for_export
from panscope.runs.finished_coder import FinishedCoder
from panscope.runs.run import Run
from panscope.storage.atomic import replacing_folder, writing
from panscope.storage.sealed import write_json
from panscope.types import UserError

ABOUT = "panscope.json"


def export(source: Path, name: str, out: Path) -> list[Path]:
    """Write the coder in `source`, or every coder of the run `source`, into the new folder `out`; the folders written.

    Raises UserError for a coder that the format has no place for; then nothing is written.
    """
    format, source, out = format_named(name), expanded(source), expanded(out)
    coders = _coders(source)
    check_free(out, "out")
    several = [coder.folder for coder in coders] != [source]
    with new_folder(out) as fresh:
        for coder in coders:
            _write(coder, format, fresh / coder.name if several else fresh)
    return [out / coder.name for coder in coders] if several else [out]


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that becomes `out` at the end, and is gone where anything fails."""
    with replacing_folder(out) as fresh:
        try:
            yield fresh
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise


def check_free(out: Path, flag: str) -> None:
    """Raise UserError unless `out` is new, or an empty folder: nothing is ever written over."""
    with writing(out):
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if taken:
        raise UserError(f"{flag}: {str(out)!r} exists already and nothing is written over: choose another --{flag}")


def _coders(source: Path) -> list[FinishedCoder]:
    """The coders that are meant."""
    if (source / "config.json").is_file():
        return [FinishedCoder(source)]
    if not (source / "suite.toml").is_file():
        raise UserError(
            f"{str(source)!r} is neither the folder of a coder, such as RUN/coders/NAME, nor a run: give one of these"
        )
    return Run.open(source).coders()


def _write(coder: FinishedCoder, format: Format, out: Path) -> None:
    foreign = load_for_export(coder)
    out.mkdir(parents=True, exist_ok=True)
    try:
        format.write(foreign, out)
    except UserError as error:
        raise UserError(f"{coder.name}: {error}") from None
    write_json(out / ABOUT, exported_names(foreign))
