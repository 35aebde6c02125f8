"""The report in a real browser: it opens from disk alone, draws every figure, and says nothing to the console."""

from collections.abc import Iterator

import pytest

from panscope.reporting.figures import FIGURES
from panscope.reporting.runs import read_runs
from panscope.reporting.write import Written, write_report
from tests.support.browser import Page, chromium, opened
from tests.support.fake_run import Fake, write_run

DRAWN = """new Promise((done) => {
  const look = () => document.documentElement.dataset.drawn === "all" ? done(true) : setTimeout(look, 20);
  look();
})"""

HOSTILE_PLOTS = [plot for plot in FIGURES if plot.key in ("by-layer", "subsets", "transfer", "neighbourhoods")]

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium is installed: apt-get install chromium")


@pytest.fixture(scope="module")
def page(written: Written, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(written.page.as_uri(), tmp_path_factory.mktemp("chromium"), DRAWN) as page:
        yield page


def test_every_figure_is_drawn(page: Page):
    """With marks in it, of a size that can be seen, inside the page."""
    assert page.value("document.querySelectorAll('.missing').length") == 0
    for plot in FIGURES:
        chart = f"document.querySelector('#chart-{plot.key} svg')"
        assert page.value(
            f"{chart}?.querySelectorAll('.mark-symbol path, .mark-line path, .mark-rect path').length > 0"
        )
        size = page.value(f"(({{width, height}}) => [width, height])({chart}.getBoundingClientRect())")
        assert size[0] > 200 and size[1] > 100, plot.key
        assert page.value(f"document.getElementById('{plot.key}').textContent.includes({plot.look!r})")


def test_no_figure_is_wider_than_its_card(page: Page):
    wide = page.value("[...document.querySelectorAll('.chart')].filter((c) => c.scrollWidth > c.clientWidth).length")
    assert wide == 0


def test_nothing_is_loaded_and_nothing_is_wrong(page: Page, written: Written):
    assert page.complaints() == []
    outside = [url for url in page.requests() if not url.startswith("data:")]
    assert outside == [written.page.as_uri()]
    assert page.value("performance.getEntriesByType('resource').length") == 0


def test_the_network_is_out_of_reach_even_for_scripts(page: Page):
    """The page's own policy refuses it, whatever was written into the page."""
    tried = "fetch('https://example.org/').then(() => 'reached', () => 'refused')"
    before = len(page.events)
    assert page.value(tried) == "refused"
    del page.events[before:]


def test_hovering_over_a_point_names_the_coder(page: Page):
    point = "document.querySelector('#chart-trade-off-fvu .mark-symbol.role-mark path')"
    page.value(f"{point}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    x, y = page.value(
        f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({point}.getBoundingClientRect())"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x - 3, y=y - 3)
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    seen = page.value("document.getElementById('vg-tooltip-element').textContent")
    names = page.value("[...document.querySelectorAll('#results tbody tr')].map((row) => row.cells[0].textContent)")
    assert any(name in seen for name in names), seen
    for words in ("siteresidual stream", "layer0", "L0", "FVU, 95 % from", "FVU, 95 % to"):
        assert words in seen, seen


def test_the_table_is_sorted_by_a_click(page: Page):
    column = "[...document.querySelectorAll('#results tbody tr')].map((row) => Number(row.cells[6].dataset.value))"
    click = "document.querySelectorAll('#results th button')[6].click()"
    before = page.value(column)
    page.value(click)
    assert page.value(column) == sorted(before)
    page.value(click)
    assert page.value(column) == sorted(before, reverse=True)


def test_the_table_shows_only_what_is_searched_for(page: Page):
    box = "document.getElementById('search')"
    search = f"(words) => {{{box}.value = words; {box}.dispatchEvent(new Event('input'));}}"
    rows = "[...document.querySelectorAll('#results tbody tr')]"
    shown = f"{rows}.filter((row) => !row.hidden).map((row) => row.cells[0].textContent)"
    everything = page.value(shown)
    page.value(f"({search})('L01R TOPK')")
    assert page.value(shown) == [name for name in everything if "L01R" in name and "topk" in name]
    page.value(f"({search})('')")
    assert page.value(shown) == everything


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A run whose names and texts try to get out of where they stand."""
    fake = Fake(
        layers=2,
        widths=(64,),
        sparsities=(8,),
        labels=("text",),
        text="</script><script>window.broken = 1</script>.jsonl",
        model='"><img src=x onerror="window.broken = 2">',
        subsets=("<img src onerror=evil=3>", "'] + (broken = 4) + ['", "<!--<script>"),
    )
    place = tmp_path_factory.mktemp("hostile")
    run = write_run(place / "<img src=x onerror=window.broken=5>", fake)
    written = write_report(read_runs([run]), place / "report", HOSTILE_PLOTS)
    with opened(written.page.as_uri(), tmp_path_factory.mktemp("chromium"), DRAWN) as page:
        yield page


def test_hostile_names_are_shown_and_nothing_else(hostile: Page):
    assert hostile.value("window.broken ?? window.evil") is None
    assert hostile.value("document.querySelectorAll('img').length") == 0
    assert hostile.complaints() == []
    text = hostile.value("document.querySelector('header').textContent")
    for words in ("</script><script>window.broken = 1</script>.jsonl", 'onerror="window.broken = 2"', "broken=5"):
        assert words in text
    subsets = hostile.value("document.getElementById('chart-subsets').textContent")
    assert "<img src onerror=evil=3>" in subsets and "(broken = 4)" in subsets
    assert hostile.value("document.querySelectorAll('.chart svg').length") == hostile.value(
        "document.querySelectorAll('figure').length"
    )
