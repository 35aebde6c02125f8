"""At which layers the latents of a coder of several layers are active: a heat map, latents sorted by their mean layer.

Multi-Layer SAE, section 4: on one token most latents are active at one layer or a few, over all tokens at more.
"""

from functools import partial

from panscope.reporting import choice, style
from panscope.reporting.figure import Figure, Missing, Row, Spec
from panscope.reporting.runs import CoderResults, Results

MOST_CODERS = 3
MOST_LATENTS = 200
NOTE = f"Shown: at most {MOST_LATENTS} latents per coder, evenly spaced by mean layer; layers.parquet contains all."


def latent_layers(results: Results) -> Figure | Missing:
    """The share of each latent's activation at each layer."""
    found = [coder for coder in results.coders() if _table(results, coder) is not None]
    if not found:
        return Missing(
            "no evaluation of a multi-layer coder has a table of latents by layer",
            f'train one with `wiring = "multilayer"`, or run `{results.measure}`',
        )
    several = len(results.runs) > 1
    chosen = choice.spread(found, MOST_CODERS)
    rows = [row for coder in chosen for row in _shares(coder, _table(results, coder) or [], several=several)]
    more = choice.note(chosen, found, "coders", then="layers.parquet next to each eval.json has its own")
    return Figure(rows, partial(_heat_map, rows), f"{NOTE} {more}".strip())


def _table(results: Results, coder: CoderResults) -> list[Row] | None:
    evaluation = results.drawn(coder)
    return None if evaluation is None else evaluation.table("layers")


def _shares(coder: CoderResults, table: list[Row], *, several: bool) -> list[Row]:
    """A row for each of some latents and each layer; latents that never fired are left out."""
    totals: dict[int, dict[int, float]] = {}
    for row in table:
        totals.setdefault(row["latent"], {})[row["layer"]] = row["total"]
    alive = {latent: layers for latent, layers in totals.items() if sum(layers.values()) > 0}
    means = {latent: _mean_layer(layers) for latent, layers in alive.items()}
    order = choice.spread(sorted(alive, key=lambda latent: (means[latent], latent)), MOST_LATENTS)
    name = f"{coder.facts.run}/{coder.facts.name}" if several else coder.facts.name
    return [
        {"coder": name, "rank": rank, "latent": latent, "layer": layer, "mean_layer": means[latent]}
        | {"share": total / sum(alive[latent].values())}
        for rank, latent in enumerate(order)
        for layer, total in sorted(alive[latent].items())
    ]


def _mean_layer(layers: dict[int, float]) -> float:
    return sum(layer * total for layer, total in layers.items()) / sum(layers.values())


def _heat_map(rows: list[Row], room: int) -> Spec:
    coders = list(dict.fromkeys(row["coder"] for row in rows))
    abreast = style.abreast(len(coders), room)
    size = {"width": style.panel_width(abreast, room, 380), "height": {"step": max(2, 400 // MOST_LATENTS)}}
    return {"concat": [size | _panel(coder, room) for coder in coders], "columns": abreast, "spacing": 16}


def _panel(coder: str, room: int) -> Spec:
    colour = {"field": "share", "type": "quantitative", "title": "share of the latent's activation"}
    colour |= {
        "scale": {"scheme": "viridis", "domain": [0, 1]},
        "legend": {"gradientLength": min(260, room - 60), "format": ".0%", "values": [0, 0.25, 0.5, 0.75, 1]},
    }
    tips = [{"field": name, "type": "nominal"} for name in ("coder", "latent", "layer")]
    tips += [{"field": "share", "type": "quantitative", "format": ".1%"}]
    tips += [{"field": "mean_layer", "title": "mean layer", "type": "quantitative", "format": ".2f"}]
    y = {"field": "rank", "type": "ordinal", "title": "latents, sorted by mean layer"}
    y |= {"axis": {"labels": False, "ticks": False, "grid": False}, "sort": "ascending"}
    x = {"field": "layer", "type": "ordinal", "title": "layer", "axis": {"labelAngle": 0, "grid": False}}
    encoding = {"x": x, "y": y, "color": colour, "tooltip": tips}
    chosen = [{"filter": {"field": "coder", "equal": coder}}]
    return {"title": {"text": coder, **style.PANEL_TITLE}, "transform": chosen, "mark": "rect", "encoding": encoding}
