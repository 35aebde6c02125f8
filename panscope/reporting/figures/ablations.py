"""What each site is worth to the language model: its loss without the site, the scale to read delta losses against.

Gemma Scope, section 4.1, footnote 7: residual coders harm more because mean-ablating the residual stream harms more.
"""

from functools import partial

from panscope.reporting import charts
from panscope.reporting.axes import LAYER, Axis
from panscope.reporting.figure import Figure, Missing, Row
from panscope.reporting.rows import IDENTITY, site_rows
from panscope.reporting.runs import Results

_ABLATED = {"zero": "ce_zero_ablated", "mean": "ce_mean_ablated"}


def ablations(results: Results) -> Figure | Missing:
    """The rise of the loss when a site is replaced by zero, by its mean, and by each architecture's best coder."""
    rows = _harm(site_rows(results, ("ce_clean", "delta_loss", *_ABLATED.values())))
    if not rows:
        return Missing("no coder has losses under ablation", f"run `{results.measure}`")
    harm = Axis("harm", "rise of the loss (nats per token)", log=True)
    looks = charts.Looks(charts.name_colour(rows, "text", "replaced by"))
    look = charts.Grid(x=LAYER, ys=(harm,), looks=looks, series=("text",))
    return Figure(rows, partial(charts.grid, rows, look))


def _harm(measured: list[Row]) -> list[Row]:
    """A row for each site and what it is replaced by."""
    rows = []
    for site in dict.fromkeys((row["place"], row["site"], row["run"]) for row in measured):
        here = [row for row in measured if (row["place"], row["site"], row["run"]) == site]
        first = here[0]
        place = {name: first[name] for name in IDENTITY if name in ("run", "place", "layer", "site")}
        for words, ablated in _ABLATED.items():
            if first[ablated] is not None and first["ce_clean"] is not None:
                rows.append(place | {"text": words, "harm": first[ablated] - first["ce_clean"], "coder": None})
        found = [row for row in here if row["delta_loss"] is not None]
        for family in dict.fromkeys(row["family"] for row in found):
            best = min((row for row in found if row["family"] == family), key=lambda row: row["delta_loss"])
            words = f"best {family} coder"
            rows.append(place | {"text": words, "harm": best["delta_loss"], "coder": best["coder"]})
    return rows
