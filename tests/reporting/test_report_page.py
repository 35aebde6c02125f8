"""The report in a real browser: it opens from disk alone, draws every figure, and says nothing to the console."""

from collections.abc import Iterator

import pytest

from panscope.reporting import style
from panscope.reporting.figures import FIGURES
from panscope.reporting.results_table import FIRST_ROWS
from panscope.reporting.runs import Results, read_runs
from panscope.reporting.table import table_rows
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
    for words in ("siteresidual stream", "layer0", "L0", "FVU, 95 % CI from", "FVU, 95 % CI to"):
        assert words in seen, seen


def test_the_table_is_sorted_by_a_click(page: Page):
    column = "[...document.querySelectorAll('#results tbody tr')].map((row) => Number(row.cells[6].dataset.value))"
    click = "document.querySelectorAll('#results th button')[6].click()"
    before = page.value(column)
    page.value(click)
    assert page.value(column) == sorted(before)
    page.value(click)
    assert page.value(column) == sorted(before, reverse=True)


ROWS = "[...document.querySelectorAll('#results tbody tr')]"
SHOWN = f"{ROWS}.filter((row) => row.offsetHeight > 0).map((row) => row.cells[0].textContent)"
SAID = "document.getElementById('shown').textContent"


def choose(page: Page, **values: str) -> list[str]:
    """Clear the filters, set some of them and ask for all rows; the names of the coders that are then shown."""
    form, reset = "document.getElementById('filters')", "new Promise((done) => setTimeout(done, 20))"
    page.value(f"{form}.reset(); {reset}")
    for name, value in values.items():
        field = "document.getElementById('search')" if name == "search" else f"{form}.elements['{name}']"
        page.value(f"{field}.value = '{value}'; {field}.dispatchEvent(new Event('input', {{bubbles: true}}))")
    more = "document.getElementById('more')"
    page.value(f"if (!{more}.hidden && {more}.ariaExpanded === 'false') {more}.click()")
    return page.value(SHOWN)


def test_every_row_of_the_table_can_be_shown_without_an_inner_scroll_bar(page: Page, results: Results):
    """A long table begins short, says so, and is opened by its button."""
    count = len(list(results.coders()))
    assert len(page.value(SHOWN)) == FIRST_ROWS < count
    assert page.value(SAID) == f"Showing {FIRST_ROWS} of {count} coders."
    assert page.value("document.getElementById('more').textContent") == f"Show all {count} rows"
    assert len(choose(page)) == count
    assert page.value(SAID) == f"Showing {count} of {count} coders."
    box = "document.querySelector('.scroll')"
    assert page.value(f"{box}.scrollHeight <= {box}.clientHeight + 1")


def test_the_table_shows_only_what_is_searched_for(page: Page):
    everything = choose(page)
    assert choose(page, search="L01R TOPK") == [name for name in everything if "L01R" in name and "topk" in name]
    assert choose(page) == everything


@pytest.mark.parametrize(
    ("values", "field", "expected"),
    [
        ({"place": "MLP output"}, "place", {"MLP output"}),
        ({"width": "128"}, "width", {128}),
        ({"architecture": "jumprelu"}, "architecture", {"jumprelu"}),
        ({"layers": "1"}, "layers", {"1", "0 1"}),
    ],
)
def test_the_table_is_filtered_by_a_menu(
    page: Page, results: Results, values: dict[str, str], field: str, expected: set[str | int]
):
    """A coder of several layers is found under each of them."""
    wanted = {row["coder"] for row in table_rows(results) if row[field] in expected}
    found = choose(page, **values)
    assert set(found) == wanted and len(found) == len(wanted)
    assert page.value(SAID) == f"Showing {len(wanted)} of {len(list(results.coders()))} coders."


def test_filters_are_combined_and_kept_when_the_table_is_sorted(page: Page):
    found = choose(page, place="residual stream", architecture="topk", width="64", layers="0")
    assert found == ["L00R-1x-topk-k8", "L00R-1x-topk-k16"]
    page.value("document.querySelectorAll('#results th button')[5].click()")
    assert sorted(page.value(SHOWN)) == sorted(found)
    assert choose(page, search="nowhere") == []
    assert "No coder matches" in page.value(SAID)


def test_the_table_is_used_by_keyboard(page: Page):
    """Tab goes from the search box to the table's headings, where Enter sorts."""
    choose(page, search="L00R")
    page.value("document.getElementById('search').focus()")
    seen = []
    for _ in range(15):
        for kind in ("keyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        seen.append(page.value("document.activeElement.textContent"))
        if seen[-1] == "KL":
            break
    assert seen[-1] == "KL", seen
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    assert page.value("document.activeElement.parentElement.ariaSort") == "ascending"


@pytest.fixture(scope="module")
def phone(written: Written, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page at 400 pixels, in dark colours."""
    with opened(written.page.as_uri(), tmp_path_factory.mktemp("chromium"), DRAWN) as page:
        page.call("Emulation.setDeviceMetricsOverride", width=400, height=850, deviceScaleFactor=1, mobile=False)
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        page.value(DRAWN.replace('"all"', '"all" && document.documentElement.dataset.screen === "narrow dark"'))
        yield page


def test_a_phone_scrolls_down_only_and_every_chart_fits(phone: Page):
    assert phone.value("document.documentElement.scrollWidth") <= 400
    wide = "[...document.querySelectorAll('.chart svg')].filter((svg) => svg.getBoundingClientRect().right > 400)"
    assert phone.value(f"{wide}.map((svg) => svg.closest('figure').id)") == []
    shrunk = "[...document.querySelectorAll('.chart svg')].map((svg) => svg.clientWidth / svg.viewBox.baseVal.width)"
    assert min(phone.value(shrunk)) > 0.9, "drawn for a phone, and not made small"
    assert phone.complaints() == []


def test_a_phone_shows_l0_and_fvu_of_every_coder(phone: Page):
    for name in ("L0", "FVU"):
        heading = f"[...document.querySelectorAll('#results th')].find((one) => one.textContent === '{name}')"
        left, right = phone.value(f"(({{left, right}}) => [left, right])({heading}.getBoundingClientRect())")
        assert 0 < left < right <= 400, name


def test_charts_are_drawn_again_in_dark_colours(phone: Page):
    """Nothing of a chart's text is dark on the dark card."""
    fills = "[...document.querySelectorAll('.chart svg text')].map((one) => one.getAttribute('fill'))"
    found = set(phone.value(fills))
    assert found and not found & set(style.DARK), found
    assert phone.value("document.querySelector('.chart svg').style.backgroundColor") == "rgb(27, 31, 37)"


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
