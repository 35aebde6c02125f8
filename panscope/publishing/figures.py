"""The figures of a model card: those of the report that show sparsity against fidelity."""

from dataclasses import replace

from panscope.publishing.card import CardFigure
from panscope.reporting.figure import Figure
from panscope.reporting.figures import FIGURES
from panscope.reporting.runs import Results
from panscope.reporting.write import svg
from panscope.runs.finished_coder import HELD_OUT

_SHOWN = ("trade-off-delta-loss", "trade-off-fvu")


def card_figures(results: Results, label: str | None) -> dict[str, CardFigure]:
    """The figures that can be drawn of the evaluation `label`, by file name."""
    found: dict[str, CardFigure] = {}
    shown = replace(results, label=label or HELD_OUT)
    for plot in FIGURES:
        drawn = plot.draw(shown) if plot.key in _SHOWN else None
        if isinstance(drawn, Figure):
            found[f"{plot.key}.svg"] = CardFigure(svg(plot, drawn), plot.title, plot.look)
    return found
