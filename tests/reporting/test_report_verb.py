"""`panscope report` from end to end, and what is on disk after it."""

import csv
import html.parser
import re
import shutil
import sys
from pathlib import Path

import pytest

from panscope.cli.main import main
from panscope.reporting.figure import Figure
from panscope.reporting.figures import FIGURES
from panscope.reporting.page import page
from panscope.reporting.runs import Results, read_runs
from panscope.reporting.table import table_rows
from panscope.reporting.write import Written, as_csv, write_report
from panscope.types import UserError
from tests.support.fake_run import Fake, write_run


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Calls `panscope report`; its exit status and what it said in one line."""
    monkeypatch.setenv("COLUMNS", "400")

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["panscope", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        seen = capsys.readouterr()
        assert "Traceback" not in seen.err
        return int(str(caught.value.code)), " ".join((seen.out + seen.err).split())

    return call


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def mine(bare: Path, tmp_path: Path) -> Path:
    """A copy of the bare run that may be changed."""
    return shutil.copytree(bare, tmp_path / "mine")


def test_it_says_where_the_page_is_and_what_was_left_out(report, mine: Path):
    status, said = report(mine)
    assert status == 0
    assert f"6 figures in {mine}/report/index.html; open it in a browser" in said
    assert (
        "left out: Reconstruction loss by position: the coders were not evaluated by position; "
        f"run `panscope eval {mine}`" in said
    )
    assert said.count("left out: ") == len(FIGURES) - 6
    names = {path.name for path in (mine / "report" / "figures").iterdir()}
    assert "trade-off-fvu.svg" in names and "trade-off-fvu.csv" in names and "results.csv" in names
    assert len(names) == 2 * 6 + 1


def test_a_second_report_takes_the_place_of_the_first(report, mine: Path):
    report(mine)
    first = (mine / "report" / "index.html").read_bytes()
    (mine / "report" / "figures" / "old.svg").write_text("of an older version")
    (mine / "geometry").mkdir()
    assert report(mine)[0] == 0
    assert (mine / "report" / "index.html").read_bytes() == first, "the same results give the same page"
    assert not (mine / "report" / "figures" / "old.svg").exists()
    assert not [path for path in mine.iterdir() if path.name.endswith(".tmp")]


def test_several_runs_go_into_one_report(report, bare: Path, mine: Path, tmp_path: Path):
    status, said = report(bare, mine)
    assert status == 2
    assert "--out is missing: a report on 2 runs belongs to none of them, so say where" in said
    status, said = report(bare, mine, "--out", tmp_path / "both")
    assert status == 0
    rows = read_csv(tmp_path / "both" / "figures" / "trade-off-fvu.csv")
    assert sorted(row["coder"] for row in rows) == ["bare/L00R-1x-topk-k16", "mine/L00R-1x-topk-k16"]
    text = (tmp_path / "both" / "index.html").read_text(encoding="utf-8")
    assert "<h3>bare</h3>" in text and "<h3>mine</h3>" in text


def test_mistakes_are_one_sentence(report, mine: Path, tmp_path: Path):
    assert report()[0] == 2
    status, said = report(tmp_path / "nowhere")
    assert status == 2 and "nowhere' is not a run folder: it has no suite.toml; give the folder of a run" in said
    shutil.rmtree(mine / "coders")
    status, said = report(mine)
    assert status == 2 and "has no finished coder yet: continue it by `panscope train --resume" in said
    assert not (mine / "report").exists()


@pytest.mark.parametrize("name", ["thesis.tex", "figures/mine.png", "figures/deep/a.svg"])
def test_a_folder_with_anything_else_is_left_alone(report, name: str, mine: Path, tmp_path: Path):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    status, said = report(mine, "--out", out)
    assert status == 2
    assert "the report cannot take the place of" in said and "choose another --out" in said
    assert (out / name).read_text() == "mine"


def test_a_file_in_the_way_is_left_alone(report, mine: Path, tmp_path: Path):
    (tmp_path / "out").write_text("mine")
    status, said = report(mine, "--out", tmp_path / "out")
    assert status == 2 and "it is a file" in said
    assert (tmp_path / "out").read_text() == "mine"


def test_a_report_that_fails_leaves_the_old_one(mine: Path, monkeypatch: pytest.MonkeyPatch):
    results = read_runs([mine])
    write_report(results, mine / "report")
    before = (mine / "report" / "index.html").read_bytes()

    def full_disk(*arguments: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("panscope.reporting.write.page", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        write_report(results, mine / "report")
    assert (mine / "report" / "index.html").read_bytes() == before
    assert not [path for path in mine.iterdir() if path.name.endswith(".tmp")]


def test_csv_files_hold_every_digit(results: Results, written: Written):
    for plot in FIGURES:
        figure = plot.draw(results)
        assert isinstance(figure, Figure)
        path = written.page.parent / "figures" / f"{plot.key}.csv"
        read = read_csv(path)
        assert len(read) == len(figure.rows) > 0
        for stored, row in zip(read, figure.rows, strict=True):
            for name, value in row.items():
                same = float(stored[name]) == value if isinstance(value, float) else stored[name] == str(value or "")
                assert same or stored[name] == str(value), (plot.key, name)


def test_csv_keeps_commas_quotes_and_line_ends():
    rows = [{"a": 'x,"y"\nz', "b": 0.1 + 0.2}, {"a": None, "c": True}]
    read = list(csv.DictReader(as_csv(rows).splitlines(keepends=True)))
    assert read == [{"a": 'x,"y"\nz', "b": "0.30000000000000004", "c": ""}, {"a": "", "b": "", "c": "True"}]


def test_the_page_names_nothing_outside_itself(written: Written):
    """No element of it loads anything; its links go into itself and to the files beside it."""
    found: list[tuple[str, str | None]] = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(pair for pair in attrs if pair[0] in ("src", "href", "srcset", "action", "data", "style"))

    text = written.page.read_text(encoding="utf-8")
    Reader().feed(text)
    assert {name for name, _ in found} == {"href"}
    assert all(value == "data:," or (value or "").startswith(("#", "figures/")) for _, value in found)
    for _, value in found:
        assert not (value or "").startswith("figures/") or (written.page.parent / str(value)).is_file()
        assert not (value or "").startswith("#") or f'id="{str(value)[1:]}"' in text
    assert "default-src &#x27;none&#x27;" in text


def test_sections_without_figures_are_left_out_and_listed_at_the_end(bare: Path):
    """With the command that would measure them; the navigation leads to what is there."""
    results = read_runs([bare])
    text = page(results, [(plot, plot.draw(results)) for plot in FIGURES])
    navigation = text[text.index("<nav>") : text.index("</nav>")]
    assert re.findall('href="#([^"]*)"', navigation) == [
        "results-section",
        "trade-off",
        "by-layer",
        "frequencies",
        "training",
    ]
    for group in ("By position", "Transfer", "Layers", "Geometry"):
        assert f"<h2>{group}</h2>" not in text
    lines = re.findall("<li>(.*?)</li>", text[text.index('id="not-measured">Not measured:') :])
    (geometry,) = (line for line in lines if "panscope geometry" in line)
    assert geometry.count("<b ") == 3 and f"<code>panscope geometry {bare}</code>" in geometry
    (positions,) = (line for line in lines if "Reconstruction loss by position" in line)
    assert "Delta loss by position" in positions and f"<code>panscope eval {bare}</code>" in positions
    assert len(re.findall('<b id="', "".join(lines))) == len(FIGURES) - 6


def test_a_complete_report_lists_nothing_as_not_measured(written: Written):
    assert "Not measured" not in written.page.read_text(encoding="utf-8")


def test_the_page_stays_small_with_many_coders(tmp_path: Path):
    """300 coders: the page grows with what is drawn, and not with every position of every coder."""
    fake = Fake(layers=25, widths=(64, 128), sparsities=(8,), labels=(), subsets=(), kinds=("resid_post", "mlp_out"))
    run = write_run(tmp_path / "many", fake)
    results = read_runs([run])
    drawn = [(plot, plot.draw(results)) for plot in FIGURES]
    assert len(table_rows(results)) == 2 * 2 * 2 * 25 + 1 + 1
    assert len(page(results, drawn).encode()) < 6_000_000
