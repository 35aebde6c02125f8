"""The page: one HTML file with the charts' data and the code that draws them inside, so that it needs no network.

A browser is told by the page itself (its Content-Security-Policy) to load nothing at all. Everything that comes from
results is escaped: names and texts are other people's.
"""

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from panscope import __version__
from panscope.extras import optional
from panscope.reporting import style
from panscope.reporting.figure import Figure, Missing, Plot, Row, Spec
from panscope.reporting.figures import GROUPS
from panscope.reporting.label import texts
from panscope.reporting.markup import text, with_code
from panscope.reporting.results_table import results_section
from panscope.reporting.runs import ReportedRun, Results, named
from panscope.reporting.words import WORDS
from panscope.runs.finished_coder import HELD_OUT, StoredEvaluation

VEGA_LITE = "6.4"
"""The version of Vega-Lite that charts are written in, in the page and for their SVG files."""
_DIGITS = 6
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)

Drawn = Sequence[tuple[Plot, Figure | Missing]]
"""Every entry of the table of figures with what came of it."""


def chart(figure: Figure, room: int = style.PAGE_WIDTH) -> Spec:
    """The whole Vega-Lite chart for a page of so many pixels in width, with the data that it needs."""
    return _chart(figure, room) | {"data": {"values": _data(figure, room)}}


def _chart(figure: Figure, room: int) -> Spec:
    schema = f"https://vega.github.io/schema/vega-lite/v{VEGA_LITE.partition('.')[0]}.json"
    return {"$schema": schema, "config": style.config(room), **figure.spec(room)}


def _data(figure: Figure, room: int) -> list[Row]:
    rows = figure.rows if figure.drawn is None else figure.drawn
    fields = _fields(figure.spec(room), rows)
    return [_slim(row, fields) for row in rows]


def _charts(drawn: Drawn) -> dict[str, Any]:
    """For each figure its data, once, and its chart for wide and for narrow screens."""
    rooms = {"wide": style.PAGE_WIDTH, "narrow": style.PHONE_WIDTH}
    return {
        plot.key: {"rows": _data(figure, style.PAGE_WIDTH)}
        | {name: _chart(figure, room) for name, room in rooms.items()}
        for plot, figure in drawn
        if isinstance(figure, Figure)
    }


def _fields(spec: Spec, rows: Sequence[Row]) -> list[str]:
    """The columns that the chart mentions, so that the page does not carry the others."""
    mentioned = json.dumps(spec)
    return [name for name in dict.fromkeys(key for row in rows for key in row) if name in mentioned]


def _slim(row: Row, fields: list[str]) -> Row:
    return {name: _short(row[name]) for name in fields if row.get(name) is not None}


def _short(value: Any) -> Any:
    """A number with as many digits as a chart can show; what is not finite is left out of it."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def page(results: Results, drawn: Drawn) -> str:
    """The HTML text."""
    names = ", ".join(run.name for run in results.runs)
    body = [
        _header(results, names),
        _navigation(drawn),
        "<main>",
        results_section(results),
        *(_group(group, drawn) for group in GROUPS),
        _not_measured(drawn),
        "</main>",
        f"<footer>Written by Panscope {text(__version__)}. The folder figures/ next to this page contains "
        "every figure as SVG and CSV.</footer>",
        f'<script type="application/json" id="figures">{_in_script(_charts(drawn))}</script>',
        f'<script type="application/json" id="dark">{_in_script(style.DARK)}</script>',
        f"<script>{_drawing_code()}</script>",
        f"<script>{_file('page.js')}</script>",
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{text(_POLICY)}"><link rel="icon" href="data:,">'
        f"<title>Panscope: {text(names)}</title><style>{_file('page.css')}</style>"
    )
    whole = "\n".join(body)
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{whole}\n</body>\n</html>\n'


def _in_script(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it can end the element or begin a comment."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")


@cache
def _drawing_code() -> str:
    """Vega, Vega-Lite and Vega-Embed in one piece, as they come with vl-convert."""
    code = optional("vl_convert", extra="report").javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
    assert "</script" not in code.lower() and "<!--" not in code
    return code


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _header(results: Results, names: str) -> str:
    several = len(results.runs) > 1
    runs = "".join((f"<h3>{text(run.name)}</h3>" if several else "") + _facts(run) for run in results.runs)
    words = "".join(f"<dt>{text(word)}</dt><dd>{text(meaning)}</dd>" for word, meaning in WORDS.items())
    return (
        f"<header><h1>{text(names)}</h1>"
        '<p class="lead">Sparsity and reconstruction quality of sparse coders, and their effect on the language '
        "model&#x27;s loss. Hover over a point for the coder and its values; thin vertical lines are 95 % confidence "
        "intervals over sequences.</p>"
        f"{_drawn(results)}{runs}<details><summary>Definitions</summary>"
        f'<dl class="words">{words}</dl></details></header>'
    )


def _drawn(results: Results) -> str:
    """Which evaluation the numbers are of, where it is not that of the held-out text."""
    if results.label == HELD_OUT:
        return ""
    on = next((texts(found) for coder in results.coders() if (found := results.drawn(coder))), "")
    return f'<p class="lead">The numbers are those of the evaluation {text(results.label)}, on {text(on)}.</p>'


def _facts(run: ReportedRun) -> str:
    """What the run was made of, and what it was measured on."""
    data, model = run.suite.get("data", {}), run.suite.get("model", {})
    evaluations = [evaluation for coder in run.coders for evaluation in coder.evaluations.values()]
    measured = sorted({_measured(evaluation) for evaluation in evaluations if evaluation.content.get("tokens")})
    facts = {
        "model": named(model.get("path", "-")),
        "training text": ", ".join(map(named, data.get("text", []))) or "-",
        "trained on": f"{run.suite['tokens']:,} tokens" if "tokens" in run.suite else "-",
        "context": f"{data.get('context', '-')} tokens, {data.get('packing', '-')}",
        "coders": f"{len(run.coders):,}",
    }
    if run.is_imported:
        facts |= {"training text": "unknown", "trained on": "imported"}
    cells = [f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts.items()]
    where = text(", ".join(measured) or "not evaluated yet")
    cells.append(f'<div class="wide"><dt>evaluated on</dt><dd>{where}</dd></div>')
    return f'<dl class="facts">{"".join(cells)}</dl>'


def _measured(evaluation: StoredEvaluation) -> str:
    """Label, text and amount."""
    label = evaluation.label.replace("_", "-")
    return f"{label}: {texts(evaluation)} ({evaluation.content['tokens']:,} tokens)"


def _navigation(drawn: Drawn) -> str:
    groups = [group for group in GROUPS if _figures(group, drawn)]
    links = "".join(f'<li><a href="#{_anchor(group)}">{text(group)}</a></li>' for group in groups)
    links = f'<li><a href="#results-section">Results</a></li>{links}'
    return f"<nav><ul>{links}</ul></nav>"


def _anchor(group: str) -> str:
    return group.lower().replace(" ", "-")


def _figures(group: str, drawn: Drawn) -> list[tuple[Plot, Figure]]:
    """The figures of a group that could be drawn."""
    return [(plot, found) for plot, found in drawn if plot.group == group and isinstance(found, Figure)]


def _group(group: str, drawn: Drawn) -> str:
    """The section of a group; nothing where none of its figures could be drawn."""
    figures = "".join(_figure(plot, found) for plot, found in _figures(group, drawn))
    return f'<section id="{_anchor(group)}"><h2>{text(group)}</h2>{figures}</section>' if figures else ""


def _figure(plot: Plot, figure: Figure) -> str:
    note = f'<p class="note">{text(figure.note)}</p>' if figure.note else ""
    source = f"<span>Compare: {text(plot.stands_for)}</span>" if plot.stands_for else ""
    return (
        f'<figure id="{plot.key}"><figcaption><h3>{text(plot.title)}</h3><p>{text(plot.look)}</p>{note}</figcaption>'
        f'<div class="chart"><div id="chart-{plot.key}"></div></div><div class="after">'
        f'<a href="figures/{plot.key}.svg">SVG</a><a href="figures/{plot.key}.csv">CSV</a>{source}</div></figure>'
    )


def _not_measured(drawn: Drawn) -> str:
    """The figures that could not be drawn, in one line for each thing to do about them."""
    titles: dict[str, list[str]] = {}
    for plot, found in drawn:
        if isinstance(found, Missing):
            titles.setdefault(found.remedy, []).append(f'<b id="{plot.key}">{text(plot.title)}</b>')
    lines = "".join(f"<li>{', '.join(names)}: {with_code(remedy)}</li>" for remedy, names in titles.items())
    return f'<section class="missing" id="not-measured">Not measured:<ul>{lines}</ul></section>' if lines else ""
