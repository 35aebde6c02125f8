"""How much of a large suite is drawn, in which bins, on which axes; every figure becomes SVG that is XML."""

import itertools
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panscope.reporting import choice, style
from panscope.reporting.axes import Axis, domain, fitting
from panscope.reporting.binning import MOST_BINS, binned, edges
from panscope.reporting.charts import Grid, Looks, by_architecture, grid, name_colour
from panscope.reporting.figure import Figure, Plot
from panscope.reporting.figures import FIGURES
from panscope.reporting.page import chart
from panscope.reporting.rows import coder_rows
from panscope.reporting.runs import Results
from panscope.reporting.write import Written


@given(st.integers(1, 200_000))
def test_bins_cover_every_position_once_and_widen(positions: int):
    found = edges(positions)
    assert found[0] == 0 and found[-1] == positions
    widths = [high - low for low, high in itertools.pairwise(found)]
    assert len(widths) <= MOST_BINS and min(widths) >= 1
    assert positions > MOST_BINS or len(widths) == positions
    assert all(later >= earlier - 1 for earlier, later in itertools.pairwise(widths)), "but for rounding"


def test_bins_of_one_position_change_nothing():
    table = [{"position": n, "tokens": 5, "predicted_tokens": 4, "mse": n / 7, "delta_loss": -n} for n in range(50)]
    found = binned(table)
    assert [row["place_in_sequence"] for row in found] == list(range(1, 51))
    assert [row["mse"] for row in found] == pytest.approx([n / 7 for n in range(50)], rel=1e-15)
    assert [row["delta_loss"] for row in found] == [-n for n in range(50)]


def test_positions_without_tokens_and_undefined_numbers_are_left_out():
    table = [{"position": 0, "tokens": 0, "predicted_tokens": 0, "mse": None, "delta_loss": None}]
    table += [{"position": 1, "tokens": 3, "predicted_tokens": 0, "mse": 2.0, "delta_loss": None}]
    (row,) = binned(table)
    assert (row["place_in_sequence"], row["mse"], row["delta_loss"], row["l0"]) == (2, 2.0, None, None)
    assert binned([]) == []


@given(st.lists(st.integers(), max_size=40), st.integers(1, 12))
def test_what_is_spread_keeps_order_and_ends(items: list[int], most: int):
    found = choice.spread(list(enumerate(items)), most)
    assert found == sorted(set(found)) and len(found) == min(most, len(items))
    if most > 1 and items:
        assert (found[0][0], found[-1][0]) == (0, len(items) - 1)


def test_three_layers_of_32_are_those_of_llama_scope():
    assert choice.layers([{"layer": layer} for layer in range(32)]) == [7, 15, 23]


def test_layers_with_a_sweep_come_first():
    """Gemma Scope has more sparsities and widths at one layer than at the others."""
    rows = [{"layer": layer} for layer in range(26)] + [{"layer": 12}] * 5
    assert choice.layers(rows) == [12]
    assert choice.middle_layer(rows) == 12


def suite(layers: int, variants: int) -> list[dict[str, Any]]:
    places = ("residual stream", "MLP output")
    return [
        {"place": place, "layer": layer, "variant": f"v{n:02d}", "width": 2**n, "coder": f"{place}{layer}v{n}"}
        for place in places
        for layer in range(layers)
        for n in range(variants)
    ]


def test_a_large_suite_is_drawn_at_its_middle_layers_with_few_variants():
    rows = suite(26, 20)
    found = choice.at_middle_layers(rows)
    assert {row["layer"] for row in found} == {12}
    assert len({row["variant"] for row in found}) == choice.MOST_LINES
    assert {row["place"] for row in found} == {"residual stream", "MLP output"}
    assert {"v00", "v19"} <= {row["variant"] for row in found}, "the narrowest and the widest"


def test_a_place_whose_variants_are_rare_is_still_drawn():
    rows = [*suite(4, 20), {"place": "MLP transcoder", "layer": 1, "variant": "rare", "width": 3, "coder": "t"}]
    assert "MLP transcoder" in {row["place"] for row in choice.at_middle_layers(rows)}


def test_axes_are_logarithmic_only_where_they_can_be():
    axis = Axis("x", "x", log=True)
    assert fitting(axis, [{"x": 1.0}, {"x": 5.0}]).log
    assert not fitting(axis, [{"x": 1.0}, {"x": 2.0}]).log, "less than threefold"
    assert not fitting(axis, [{"x": -0.1}, {"x": 5.0}]).log
    assert not fitting(axis, [{"x": 0.0}, {"x": 5.0}]).log
    assert not fitting(axis, [{"x": None}]).log


def test_the_domain_holds_values_and_intervals_and_stays_above_0_on_a_logarithmic_axis():
    rows = [{"x": 1.0, "x_low": -3.0, "x_high": 9.0}, {"x": 4.0, "x_low": None, "x_high": None}]
    low, high = domain(Axis("x", "x"), rows) or []
    assert low < -3 and high > 9
    low, high = domain(Axis("x", "x", log=True), rows) or []
    assert 0 < low < 0.5 and high > 9
    assert domain(Axis("x", "x"), [{"x": None}]) is None
    low, high = domain(Axis("x", "x"), [{"x": 3.0}]) or []
    assert low < 3 < high


def test_every_panel_shows_its_own_place_and_layer_alone():
    """Empty places keep their panel, so nothing stands under a wrong heading."""
    rows = [row | {"l0": 8.0 + row["width"], "fvu": 0.1} for row in suite(2, 3)]
    rows = [row for row in rows if (row["place"], row["layer"]) != ("residual stream", 0)]
    looks = Looks(name_colour(rows, "variant", "v"))
    look = Grid(x=Axis("l0", "L0"), ys=(Axis("fvu", "FVU"),), looks=looks, layers=True)
    panels = grid(rows, look, style.PAGE_WIDTH)["concat"]
    for panel, layer, place in zip(panels, [0, 0, 1, 1], ["residual stream", "MLP output"] * 2, strict=True):
        wanted = {"place": place, "layer": layer}
        assert {one["filter"]["field"]: one["filter"]["equal"] for one in panel["transform"]} == wanted
        assert panel["title"]["text"] == f"{place}, layer {layer}"


def test_on_a_phone_panels_stand_one_below_the_other_and_each_says_what_it_shows():
    """Empty ones are left out, as there are no columns to keep."""
    rows = [row | {"l0": 8.0 + row["width"], "fvu": 0.1} for row in suite(2, 3)]
    rows = [row for row in rows if (row["place"], row["layer"]) != ("residual stream", 0)]
    looks = Looks(name_colour(rows, "variant", "v"))
    look = Grid(x=Axis("l0", "L0"), ys=(Axis("fvu", "FVU"),), looks=looks, layers=True)
    chart = grid(rows, look, style.PHONE_WIDTH)
    assert chart["columns"] == 1
    headings = [panel["title"]["text"] for panel in chart["concat"]]
    assert headings == ["MLP output, layer 0", "residual stream, layer 1", "MLP output, layer 1"]
    for panel in chart["concat"]:
        (mark,) = (layer for layer in panel["layer"] if layer["mark"]["type"] == "point")
        assert (mark["encoding"]["x"]["title"], mark["encoding"]["y"]["title"]) == ("L0", "FVU")
        assert "labels" not in mark["encoding"]["y"]["axis"]


BY_ARCHITECTURE = ("trade-off-fvu", "trade-off-delta-loss", "width-study", "by-layer", "frequency", "dead-and-dense")


@pytest.mark.parametrize("key", [*BY_ARCHITECTURE, "dictionaries", "training"])
def test_colours_tell_architectures_apart_and_marks_and_dashes_widths(key: str, results: Results):
    """And both are explained by a legend."""
    layers = [layer for panel in spec_of(key, results)["concat"] for layer in panel["layer"] if "data" not in layer]
    for encoding in (layer["encoding"] for layer in layers):
        assert encoding["color"]["field"] == "family" and encoding["color"]["legend"]["title"] == "architecture"
        scale = encoding["color"]["scale"]
        assert {"topk", "jumprelu"} <= set(scale["domain"]) and len(scale["domain"]) == len(set(scale["range"]))
        for channel in {"shape", "strokeDash"} & set(encoding):
            assert encoding[channel]["field"] == "width" and "width" in encoding[channel]["legend"]["title"]
            range_ = encoding[channel]["scale"]["range"]
            assert encoding[channel]["scale"]["domain"] == sorted(encoding[channel]["scale"]["domain"])
            assert len({json.dumps(one) for one in range_}) == len(range_)
    assert all("strokeDash" in layer["encoding"] for layer in layers if layer["mark"]["type"] == "line")
    assert all("shape" in layer["encoding"] for layer in layers if layer["mark"]["type"] == "point")


def test_of_one_architecture_colours_tell_widths_apart():
    rows = [row | {"family": "topk"} for row in suite(1, 3)]
    looks = by_architecture(rows)
    assert looks.colour["field"] == "width" and looks.shape is None and looks.dash is None
    assert len(set(looks.colour["scale"]["range"])) == 3


@pytest.mark.parametrize("plot", FIGURES, ids=lambda plot: plot.key)
def test_curves_of_different_architectures_are_never_joined(plot: Plot, results: Results):
    """The points of every line belong to one architecture, where they belong to coders at all."""
    figure = plot.draw(results)
    assert isinstance(figure, Figure)
    rows = figure.rows if figure.drawn is None else figure.drawn
    families = {row["coder"]: row["family"] for row in coder_rows(results)}
    for panel in figure.spec(style.PAGE_WIDTH).get("concat", []):
        for layer in panel.get("layer", []):
            if layer.get("mark", {}).get("type") == "line":
                fields = [one["field"] for one in layer["encoding"]["detail"]]
                found: dict[tuple[Any, ...], set[str]] = {}
                for row in rows:
                    if row["coder"] is not None:
                        found.setdefault(tuple(row[name] for name in fields), set()).add(families[row["coder"]])
                assert found and all(len(one) == 1 for one in found.values()), fields


@pytest.mark.parametrize("room", [style.PAGE_WIDTH, style.PHONE_WIDTH])
def test_panels_fit_the_page(room: int, results: Results):
    for plot in FIGURES:
        spec = spec_of(plot.key, results, room)
        assert spec["columns"] * min(panel["width"] for panel in spec["concat"]) < room, plot.key
        assert room > 700 or spec["columns"] == 1


def spec_of(key: str, results: Results, room: int = style.PAGE_WIDTH) -> dict[str, Any]:
    (figure,) = (plot.draw(results) for plot in FIGURES if plot.key == key)
    assert isinstance(figure, Figure)
    return figure.spec(room)


def test_every_axis_has_a_title_with_its_unit(results: Results):
    """Somewhere in each figure; the maps of UMAP have none, as their axes mean nothing."""
    for plot in FIGURES:
        spec = json.dumps(spec_of(plot.key, results))
        assert plot.key == "neighbourhoods" or '"title": "' in spec, plot.key


def test_no_two_lines_of_a_tooltip_have_one_title(results: Results):
    """Vega keeps the last of those that do, and the reader misses a number."""
    for plot in FIGURES:
        for tips in _tooltips(spec_of(plot.key, results)):
            titles = [tip.get("title", tip["field"]) for tip in tips]
            assert len(titles) == len(set(titles)), (plot.key, titles)


def _tooltips(spec: Any) -> list[list[dict[str, Any]]]:
    """Every tooltip within a chart."""
    if isinstance(spec, list):
        return [found for item in spec for found in _tooltips(item)]
    if not isinstance(spec, dict):
        return []
    own = [spec["tooltip"]] if isinstance(spec.get("tooltip"), list) else []
    return own + [found for item in spec.values() for found in _tooltips(item)]


def test_colours_of_different_things_differ_up_to_eight():
    for colours in (style.named, style.ordered):
        for count in range(1, 9):
            assert len(set(colours(count))) == count


def test_svg_files_are_xml_with_marks_and_a_title(written: Written):
    for plot in FIGURES:
        text = (written.page.parent / "figures" / f"{plot.key}.svg").read_text(encoding="utf-8")
        root = ET.fromstring(text)
        assert root.tag.endswith("svg")
        texts = "".join(root.itertext())
        assert plot.title in texts
        assert "NaN" not in text and "undefined" not in texts and "Infinity" not in text
        assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 10, plot.key


def test_charts_carry_only_finite_numbers_and_what_they_need(results: Results):
    for plot in FIGURES:
        figure = plot.draw(results)
        assert isinstance(figure, Figure)
        spec = chart(figure)
        json.dumps(spec, allow_nan=False)
        values = spec.pop("data")["values"]
        mentioned = json.dumps(spec)
        assert values and {name for row in values for name in row if name not in mentioned} == set()
        assert all(value is not None for row in values for value in row.values())


@pytest.mark.parametrize("plot", FIGURES, ids=lambda plot: plot.key)
def test_one_sentence_says_how_to_read_a_figure(plot: Plot):
    assert plot.look[0].isupper() and plot.look.endswith(".") and plot.look.count(". ") == 0
    assert Path(plot.key).name == plot.key
