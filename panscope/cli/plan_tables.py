"""The coders of a plan as a table: one line for each cell of a paper's table, or one for each coder."""

from collections import defaultdict

from rich.table import Table

from panscope.cli.units import in_counts, ranges
from panscope.planning.coder import PlannedCoder
from panscope.planning.names import short
from panscope.planning.plan import Plan
from panscope.planning.wirings import site_text

_HEADINGS = ("sites", "layers", "latents", "architecture", "sparsity", "tokens", "coders")
_ON_THE_RIGHT = ("latents", "tokens", "coders")
_MAY_WRAP = ("sites", "layers", "sparsity")


def grouped(plan: Plan) -> Table:
    """Coders that differ in layer and sparsity alone share a line; the sparsities of each layer are the same on it."""
    cells: dict[tuple[str, ...], list[PlannedCoder]] = defaultdict(list)
    for planned in plan.coders:
        cells[*_kind(planned, plan.batch), _layers(planned)].append(planned)
    lines: dict[tuple[str, ...], list[PlannedCoder]] = defaultdict(list)
    for (*kind, _), coders in cells.items():
        lines[*kind, _ladder(coders)].extend(coders)
    table = _table(*_HEADINGS)
    for (sites, width, architecture, tokens, ladder), coders in lines.items():
        table.add_row(sites, _all_layers(coders), width, architecture, ladder, tokens, f"{len(coders):,}")
    table.add_row("", "", "", "", "", "total", f"{len(plan.coders):,}")
    return table


def listed(plan: Plan) -> Table:
    """Every coder by name."""
    table = _table("coder", *_HEADINGS[:-1])
    for planned in plan.coders:
        sites, width, architecture, tokens = _kind(planned, plan.batch)
        sparsity = _ladder([planned])
        table.add_row(planned.name, sites, _layers(planned), width, architecture, sparsity, tokens)
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for heading in headings:
        side = "right" if heading in _ON_THE_RIGHT else "left"
        table.add_column(heading, justify=side, no_wrap=heading not in _MAY_WRAP, overflow="fold")
    return table


def _kind(planned: PlannedCoder, batch: int) -> tuple[str, ...]:
    coder = planned.coder
    tokens = in_counts(planned.steps * batch)
    several = len(planned.wiring.reads) > 1
    sites = f"{site_text(planned.wiring)} ({planned.wiring.wiring})" if several else site_text(planned.wiring)
    return sites, f"{coder.width:,}", coder.architecture, tokens


def _layers(planned: PlannedCoder) -> str:
    """The layers one coder is about; `+` where it is about several at once."""
    layers = sorted({site.layer for site in planned.wiring.sites()})
    return ranges(layers) if len(layers) == 1 else f"{ranges(layers)} as one"


def _all_layers(coders: list[PlannedCoder]) -> str:
    texts = list(dict.fromkeys(_layers(planned) for planned in coders))
    if all(text.isdigit() for text in texts):
        return ranges(sorted(int(text) for text in texts))
    return "; ".join(texts)


def _ladder(coders: list[PlannedCoder]) -> str:
    """The sparsities in the plan's order, after what they are."""
    pairs = [_sparsity(planned) for planned in coders]
    words = dict.fromkeys(word for word, _ in pairs)
    return "; ".join(" ".join([word, *(value for other, value in pairs if other == word)]) for word in words)


def _sparsity(planned: PlannedCoder) -> tuple[str, str]:
    kind, value = planned.coder.sparsity_aim()
    return kind, short(value) if kind == "lambda" else f"{value:g}"
