"""All metrics of one coder together, site by site.

Shape letters: F latents, T positions, C quantities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from panscope.coders.wiring import Wiring
from panscope.evals.firing import Firing
from panscope.evals.layers import LayerDistribution
from panscope.evals.moments import LAYOUT, Layout, Moments, by_position, by_sequence_and_subset
from panscope.evals.outcome import Outcome
from panscope.evals.saebench import CoreRows
from panscope.types import Latents, Site

Columns = dict[str, list[Any]]
"""A table: its columns."""
State = dict[str, Tensor]
"""Sums under flat names."""


@dataclass(frozen=True)
class Result:
    """The results of one coder."""

    fields: dict[str, Any]
    """What eval.json holds."""
    tables: dict[str, Columns]
    """`latents`, `positions` and, of a multilayer coder, `layers`: what the Parquet files beside it hold."""


@dataclass(frozen=True)
class CoderShape:
    """How much is kept apart: sums for each of `positions`, for each of `subsets`, and by SAEBench's definitions."""

    positions: int
    subsets: tuple[str, ...]
    saebench: bool
    layout: Layout = LAYOUT
    """What is measured of every token."""


class MetricAccumulator:
    """The sums of every metric at one site; parts measured apart merge into the whole."""

    def __init__(self, shape: CoderShape, width: int) -> None:
        self._shape = shape
        self._layout = shape.layout
        self._whole = Moments(shape.layout)
        self._subsets = {name: Moments(shape.layout) for name in shape.subsets} if len(shape.subsets) > 1 else {}
        self._positions = torch.zeros(shape.positions, len(shape.layout.by_position), dtype=torch.float64)
        self._saebench = CoreRows() if shape.saebench else None
        self.firing = Firing(width)

    def update(self, outcome: Outcome) -> None:
        """Add one batch."""
        measured, sequences = self._layout.measured(outcome), outcome.span.sequences
        if self._subsets:
            apart = by_sequence_and_subset(measured, sequences, len(self._subsets), self._layout)
            for number, moments in enumerate(self._subsets.values()):
                moments.add(apart[:, number])
        self._whole.add(by_sequence_and_subset(measured, sequences, 1, self._layout)[:, 0])
        self._positions += by_position(measured, self._shape.positions, self._layout)
        self.firing.update(outcome)
        if self._saebench is not None:
            self._saebench.update(outcome.y, outcome.y_hat)

    def merge(self, other: Self) -> None:
        """Add the sums of `other`; `other` is not changed."""
        for own, more in zip(self._moments().values(), other._moments().values(), strict=True):
            own.merge(more)
        self._positions += other._positions
        self.firing.merge(other.firing)
        if self._saebench is not None and other._saebench is not None:
            self._saebench.merge(other._saebench)

    def fields(self) -> dict[str, Any]:
        """Every number under its name in eval.json, with intervals."""
        intervals = self._whole.intervals() | self.firing.intervals()
        fields = self._whole.numbers() | self.firing.result() | {"intervals": intervals}
        subsets = {
            name: moments.numbers() | {"intervals": moments.intervals()}
            for name, moments in self._subsets.items()
            if moments.numbers()["tokens"]
        }
        saebench = {} if self._saebench is None else self._saebench.numbers()
        return fields | saebench | ({"subsets": subsets} if subsets else {})

    def positions(self, site: Site) -> Columns:
        """A row for each position that has a token or predicts one."""
        kept = self._layout.by_position
        counts, numbers = kept.counts(self._positions), kept.numbers(self._positions)
        some = ((counts["tokens"] > 0) | (counts["predicted_tokens"] > 0)).nonzero().flatten()
        whole = {name: counts[name][some].long().tolist() for name in ("tokens", "predicted_tokens")}
        shares = {name: values[some].tolist() for name, values in numbers.items()}
        return {"site": [str(site)] * len(some), "position": some.tolist(), **whole, **shares}

    def state_dict(self) -> State:
        """Every sum."""
        parts = {f"moments.{name}": moments.state_dict() for name, moments in self._moments().items()}
        if self._saebench is not None:
            parts |= {"saebench": self._saebench.state_dict()}
        return flat(parts | {"firing": self.firing.state_dict()}) | {"positions": self._positions.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a `state_dict`."""
        for name, moments in self._moments().items():
            moments.load_state_dict(below(state, f"moments.{name}"))
        self.firing.load_state_dict(below(state, "firing"))
        self._positions = state["positions"].clone()
        if self._saebench is not None:
            self._saebench.load_state_dict(below(state, "saebench"))

    def _moments(self) -> dict[str, Moments]:
        return {"whole": self._whole} | {f"subset {name}": moments for name, moments in self._subsets.items()}


class SiteAccumulators:
    """An accumulator for each site that one coder predicts, and how its latents are distributed over layers."""

    def __init__(self, wiring: Wiring, shape: CoderShape, width: int) -> None:
        self._stacks = wiring.stacks > 1
        self._shape, self._width = shape, width
        self._sites = {site: MetricAccumulator(shape, width) for site in wiring.predicts}
        self._by_layer = by_layer(wiring)
        layers = tuple(wiring.reads[place].layer for place in self._by_layer)
        self._layers = LayerDistribution(layers, width) if layers else None

    def update(self, site: Site, outcome: Outcome) -> None:
        """Add one batch at one site."""
        self._sites[site].update(outcome)

    def update_layers(self, codes: Sequence[Latents]) -> None:
        """Add the codes of the same tokens at every site that a multilayer coder reads, in its order."""
        if self._layers is not None:
            self._layers.update([codes[place] for place in self._by_layer])

    def merge(self, other: Self) -> None:
        """Add the sums of `other`; `other` is not changed."""
        for site, own in self._sites.items():
            own.merge(other._sites[site])
        if self._layers is not None and other._layers is not None:
            self._layers.merge(other._layers)

    def result(self) -> Result:
        """Every number under its name in eval.json.

        Of a coder with several sites: the mean over sites of each (Multi-Layer SAE, B.1), and under `sites` those of
        each one. A multilayer coder's latent is dead only if it fires at no layer.
        """
        sites = {str(site): own.fields() for site, own in self._sites.items()}
        first, *others = sites.values()
        firing = self._firing()
        fields = dict(first)
        if others:
            fields = _mean_of(list(sites.values())) | firing.result() | {"sites": sites}
            fields["intervals"] |= firing.intervals()
        tables = {"latents": {name: column.tolist() for name, column in firing.table().items()}}
        tables["positions"] = _stacked([own.positions(site) for site, own in self._sites.items()])
        if self._layers is not None:
            fields |= {"layers": self._layers.numbers()}
            tables["layers"] = {name: column.tolist() for name, column in self._layers.table().items()}
        return Result(fields, tables)

    def state_dict(self) -> State:
        """Every sum."""
        state = flat({str(site): own.state_dict() for site, own in self._sites.items()})
        return state if self._layers is None else state | flat({"layers": self._layers.state_dict()})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a `state_dict`."""
        for site, own in self._sites.items():
            own.load_state_dict(below(state, str(site)))
        if self._layers is not None:
            self._layers.load_state_dict(below(state, "layers"))

    def _firing(self) -> Firing:
        """How often the latents fired: over the rows of all layers for a multilayer coder, else over those of a site.

        A crosscoder has one code for all sites, so any of them tells.
        """
        accumulators = list(self._sites.values())
        if not self._stacks:
            return accumulators[0].firing
        firing = Firing(self._width)
        firing.merge(accumulators[0].firing)
        for own in accumulators[1:]:
            firing.merge_rows(own.firing)
        return firing


def by_layer(wiring: Wiring) -> list[int]:
    """The places of a multilayer coder's sites in the order of layers; none if its sites are of several kinds."""
    alike = wiring.stacks > 1 and len({site.kind for site in wiring.reads}) == 1
    return sorted(range(wiring.stacks), key=lambda place: wiring.reads[place]) if alike else []


def flat(parts: Mapping[str, Mapping[str, Tensor]]) -> State:
    """The tensors of several parts under names that begin with the part's, for `below`."""
    return {f"{part}/{name}": tensor for part, state in parts.items() for name, tensor in state.items()}


def below(state: Mapping[str, Tensor], part: str) -> State:
    """The tensors of one part."""
    return {name.removeprefix(f"{part}/"): tensor for name, tensor in state.items() if name.startswith(f"{part}/")}


def _mean_of(sites: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over sites of every number, of all of the text and of each subset.

    Half the width of its interval is the mean of theirs: sites share their sequences, and however their errors go
    together, the deviation of a mean is at most the mean of the deviations.
    """
    plain = [name for name, value in sites[0].items() if isinstance(value, int | float)]
    means = {name: _mean([site[name] for site in sites]) for name in plain}
    intervals = [site["intervals"] for site in sites]
    ends = {name: [_mean([one[name][end] for one in intervals]) for end in (0, 1)] for name in intervals[0]}
    subsets = {name: _mean_of([site["subsets"][name] for site in sites]) for name in sites[0].get("subsets", {})}
    return means | {"intervals": ends} | ({"subsets": subsets} if subsets else {})


def _mean(numbers: list[float | int]) -> float | int:
    """Equal counts stay whole numbers."""
    return numbers[0] if len(set(numbers)) == 1 else sum(numbers) / len(numbers)


def _stacked(tables: list[Columns]) -> Columns:
    return {name: [value for table in tables for value in table[name]] for name in tables[0]}
