"""A report on disk: the page, every figure as SVG and its data as CSV; it takes the place of an older one at once."""

import csv
import io
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from panscope.extras import optional
from panscope.reporting.figure import Figure, Missing, Plot, Row
from panscope.reporting.figures import FIGURES
from panscope.reporting.page import VEGA_LITE, chart, page
from panscope.reporting.runs import Results
from panscope.reporting.table import table_rows
from panscope.storage.atomic import replacing_folder, write_text, writing
from panscope.types import UserError

PAGE, FOLDER = "index.html", "figures"


@dataclass(frozen=True)
class Written:
    """What a report came to."""

    page: Path
    """The page, `index.html` in the report's folder."""
    label: str
    """The evaluation whose numbers are drawn."""
    figures: tuple[str, ...]
    """The titles of those that are in it."""
    left_out: dict[str, str]
    """The titles of those that are not, and why."""


def write_report(results: Results, out: Path, plots: Sequence[Plot] = FIGURES) -> Written:
    """Draw all figures and write the report into the folder `out`, in place of an older report there.

    Raises UserError if `out` holds anything but a report.
    """
    check_place(out)
    drawn = [(plot, plot.draw(results)) for plot in plots]
    fresh = out.with_name(f".{out.name}.{os.getpid()}.new.tmp")
    with replacing_folder(fresh) as folder:
        _fill(folder, results, drawn)
    _take_place(fresh, out)
    return Written(
        page=out / PAGE,
        label=results.label,
        figures=tuple(plot.title for plot, found in drawn if isinstance(found, Figure)),
        left_out={plot.title: found.reason for plot, found in drawn if isinstance(found, Missing)},
    )


def check_place(out: Path) -> None:
    """Raise UserError if something is at `out` that a report must not take the place of."""
    with writing(out):
        others = [path for path in out.rglob("*") if not _is_ours(path.relative_to(out))] if out.is_dir() else []
        taken = out.exists() and not out.is_dir()
    if taken or others:
        what = f"it holds {others[0].relative_to(out).as_posix()!r}" if others else "it is a file"
        raise UserError(f"the report cannot take the place of {str(out)!r}: {what}; move that, or choose another --out")


def _is_ours(path: Path) -> bool:
    """Whether a path inside a folder is one that a report writes."""
    if len(path.parts) == 1:
        return path.name in (PAGE, FOLDER)
    return len(path.parts) == 2 and path.parts[0] == FOLDER and path.suffix in (".svg", ".csv")


def _fill(folder: Path, results: Results, drawn: Sequence[tuple[Plot, Figure | Missing]]) -> None:
    (folder / FOLDER).mkdir()
    for plot, figure in drawn:
        if isinstance(figure, Figure):
            write_text(folder / FOLDER / f"{plot.key}.svg", svg(plot, figure))
            write_text(folder / FOLDER / f"{plot.key}.csv", as_csv(figure.rows))
    write_text(folder / FOLDER / "results.csv", as_csv(table_rows(results)))
    write_text(folder / PAGE, page(results, drawn))


def _take_place(fresh: Path, out: Path) -> None:
    """Put `fresh` at `out`: two renames, so that there is no moment with half a report."""
    old = out.with_name(f".{out.name}.{os.getpid()}.old.tmp")
    with writing(out):
        try:
            if out.exists():
                out.rename(old)
            fresh.rename(out)
        except OSError:
            if old.exists() and not out.exists():
                old.rename(out)
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)


def svg(plot: Plot, figure: Figure) -> str:
    """The figure as it stands on its own, with its title."""
    spec = chart(figure) | {"title": {"text": plot.title}}
    return optional("vl_convert", extra="report").vegalite_to_svg(spec, vl_version=VEGA_LITE, allowed_base_urls=[])


def as_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV, numbers with all their digits, empty where there is none."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
