"""At which layers the latents of a multi-layer coder are active (Multi-Layer SAE, Lawson et al. 2024).

Let a(l, j, t) be the activation of latent j at layer l on token t, and p(l, j, t) = a(l, j, t) / sum a, the
distribution of a layer L, a latent J and a token T. How far a latent spreads over layers is then three variances:

- `layer_variance`: Var(L).
- `layer_variance_given_latent`: E[Var(L | J)], a latent's spread over all tokens together.
- `layer_variance_given_latent_token`: E[Var(L | J, T)], its spread on one token.
- `ratio_latent` = E[Var(L | J)] / Var(L), `ratio_token` = E[Var(L | J, T)] / E[Var(L | J)].

They are in squares of layers, exact, and weighted by activation, so that a latent that is hardly active hardly counts
and the law of total variance holds. Of each latent that fired, its distribution over layers is its total activation at
each one over that at all of them; `layer_std_mean`, `_var`, `_std` and `_sem` describe its standard deviation over
latents, and the same names with `_over_n_layers` that deviation divided by the number of layers.

The published code (tim-lawson/mlsae) takes something else for the variances: each activation's share s(l, j, t) of its
sum over layers, 0 where there is none; plain means of shares over tokens, or tokens and latents, inactive ones too; and
sum l^2 s - (sum l s)^2 of those, although they do not add up to 1. Those numbers carry `legacy_` and serve to compare
with that code. It counts layers from 0 whichever they are, and so do they; it averages over batches where here the
whole text is one batch.

Shape letters: L layers, F latents, B rows, N active places, G groups of places.
"""

import math
from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from panscope.types import Latents, NonFiniteError


class LayerDistribution:
    """How often and how strongly each latent is active at each layer: sums that add, however long the text."""

    def __init__(self, layers: tuple[int, ...], width: int) -> None:
        assert list(layers) == sorted(set(layers)), "layers come in order and once each"
        self.layers = layers
        self.width = width
        self._sums: dict[str, Tensor] = {}

    def update(self, latents: Sequence[Latents]) -> None:
        """Take in one more batch: codes of the same rows at each layer, in the order of `layers`."""
        assert len(latents) == len(self.layers) and {one.width for one in latents} == {self.width}
        assert len({len(one) for one in latents}) == 1
        self._take(self._measure(latents))

    def merge(self, other: "LayerDistribution") -> None:
        """Add all that `other` has counted; `other` is not changed."""
        assert (other.layers, other.width) == (self.layers, self.width)
        self._take(other._sums)

    def state_dict(self) -> dict[str, Tensor]:
        """The sums: counts, totals and shares [L, F], spreads of (latent, token) pairs, rows; empty at first."""
        return {name: value.clone() for name, value in self._sums.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from where `state_dict` was taken, of the same layers and width."""
        assert not state or state["counts"].shape == (len(self.layers), self.width)
        self._sums = {name: value.clone() for name, value in state.items()}

    def numbers(self) -> dict[str, float]:
        """Each number under its name, NaN where it is undefined; at least one batch must have come."""
        totals = self._sums["totals"]
        places, latent, weights = self._at_places()
        whole = _divide(_spread(places, weights, torch.zeros_like(latent), 1), totals.sum())
        given_latent = _divide(_spread(places, weights, latent, self.width).sum(), totals.sum())
        given_token = _divide(self._sums["spread"], totals.sum())
        return _variances("", whole, given_latent, given_token) | self._legacy() | self._layer_stds()

    def table(self) -> dict[str, numpy.ndarray]:
        """The columns of layers.parquet: a row for each latent and layer, in that order."""
        return {
            "latent": numpy.repeat(numpy.arange(self.width), len(self.layers)),
            "layer": numpy.tile(numpy.asarray(self.layers), self.width),
            "firings": self._sums["counts"].T.flatten().cpu().numpy(),
            "total": self._sums["totals"].T.flatten().cpu().numpy(),
        }

    def latents(self) -> dict[str, Tensor]:
        """[F] `layer_mean`, `layer_var` and `layer_std` of each latent; NaN where it never fired."""
        totals = self._sums["totals"]
        places, latent, weights = self._at_places()
        variance = _spread(places, weights, latent, self.width) / totals.sum(dim=0)
        return {
            "layer_mean": _sum(places * weights, latent, self.width) / totals.sum(dim=0),
            "layer_var": variance,
            "layer_std": variance.sqrt(),
        }

    def _measure(self, latents: Sequence[Latents]) -> dict[str, Tensor]:
        """The sums of one batch."""
        active = [_active(codes, layer) for codes, layer in zip(latents, self.layers, strict=True)]
        rows, latent, values = (torch.cat(column) for column in zip(*active, strict=True))
        each = torch.tensor([len(one[2]) for one in active], device=values.device)
        layer = torch.arange(len(self.layers), device=values.device).repeat_interleave(each)
        pairs, group = (rows * self.width + latent).unique(return_inverse=True)
        shares = values / _sum(values, group, len(pairs))[group]
        return {
            "counts": self._at_layers((layer * self.width + latent).bincount(minlength=len(self.layers) * self.width)),
            "totals": self._at_layers(_sum(values, layer * self.width + latent, len(self.layers) * self.width)),
            "shares": self._at_layers(_sum(shares, layer * self.width + latent, len(self.layers) * self.width)),
            "spread": _spread(self._numbered(layer), values, group, len(pairs)).sum(),
            "legacy_spread": _spread(layer.double(), shares, group, len(pairs)).sum(),
            "rows": layer.new_tensor(len(latents[0])),
        }

    def _at_layers(self, flat: Tensor) -> Tensor:
        """[L, F]."""
        return flat.view(len(self.layers), self.width)

    def _at_places(self) -> tuple[Tensor, Tensor, Tensor]:
        """[N] the layer, latent and total of every total that is not 0."""
        totals = self._sums["totals"]
        layer, latent = totals.nonzero(as_tuple=True)
        return self._numbered(layer), latent, totals[layer, latent]

    def _numbered(self, layer: Tensor) -> Tensor:
        """The layers' numbers in the model, float64, at their places in `layers`."""
        return torch.tensor(self.layers, dtype=torch.float64, device=layer.device)[layer]

    def _take(self, sums: dict[str, Tensor]) -> None:
        one, other = (
            self._sums,
            {name: value.cpu() for name, value in sums.items()},
        )  # sums that were loaded are on the CPU
        self._sums = {name: one[name] + other[name] for name in one} if one and other else one or other

    def _legacy(self) -> dict[str, float]:
        shares, pairs = self._sums["shares"], float(self._sums["rows"]) * self.width
        whole = _unscaled_variance(shares.sum(dim=1) / pairs)
        given_latent = _unscaled_variance(shares / self._sums["rows"]).mean()
        return _variances("legacy_", whole, given_latent, _divide(self._sums["legacy_spread"], pairs))

    def _layer_stds(self) -> dict[str, float]:
        stds = self.latents()["layer_std"]
        stds = stds[~stds.isnan()]
        variance = float(stds.var(correction=0)) if len(stds) else math.nan
        mean = float(stds.mean()) if len(stds) else math.nan
        n, deviation = len(self.layers), math.sqrt(variance)
        numbers = {"mean": (mean, n), "var": (variance, n**2), "std": (deviation, n)}
        numbers["sem"] = (deviation / math.sqrt(max(1, len(stds))), n)
        return {f"layer_std_{name}": value for name, (value, _) in numbers.items()} | {
            f"layer_std_{name}_over_n_layers": value / scale for name, (value, scale) in numbers.items()
        }


def _active(codes: Latents, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """[N] the row, latent and float64 value of each active place; raises NonFiniteError for NaN or infinity."""
    if not codes.values.isfinite().all():
        raise NonFiniteError(
            f"the latents at layer {layer} hold NaN or infinity where finite numbers were expected: "
            "look for such a number in the coder's weights and in the rows of that layer"
        )
    if codes.indices is None:
        row, latent = (codes.values > 0).nonzero(as_tuple=True)
        return row, latent, codes.values[row, latent].double()
    even = codes.ragged()
    active = even.values > 0
    assert even.indices is not None
    return even.rows()[active], even.indices[active], even.values[active].double()


def _sum(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """[G] float64 the sum of the values of each group."""
    return values.new_zeros(groups, dtype=torch.float64).index_add_(0, group, values.double())


def _spread(places: Tensor, weights: Tensor, group: Tensor, groups: int) -> Tensor:
    """[G] sum w (place - mean)^2 of each group about its weighted mean; weights are above 0.

    Places count from the lowest of their group, so that a group with one place has spread 0 and not a rounding error.
    """
    lowest = places.new_full((groups,), math.inf).scatter_reduce_(0, group, places, "amin")
    above = places - lowest[group]
    mean = _sum(above * weights, group, groups) / _sum(weights, group, groups)
    return _sum(weights * (above - mean[group]).square(), group, groups)


def _unscaled_variance(shares: Tensor) -> Tensor:
    """sum l^2 s - (sum l s)^2 over the first axis, with layers from 0 and shares that need not add up to 1."""
    places = torch.arange(len(shares), dtype=torch.float64, device=shares.device)
    return places.square() @ shares - (places @ shares).square()


def _variances(prefix: str, whole: Tensor | float, latent: Tensor | float, token: Tensor | float) -> dict[str, float]:
    """The three variances and their two ratios by name."""
    return {
        f"{prefix}layer_variance": float(whole),
        f"{prefix}layer_variance_given_latent": float(latent),
        f"{prefix}layer_variance_given_latent_token": float(token),
        f"{prefix}ratio_latent": _divide(latent, whole),
        f"{prefix}ratio_token": _divide(token, latent),
    }


def _divide(numerator: Tensor | float, denominator: Tensor | float) -> float:
    """The quotient; NaN where the denominator is 0 and it has no meaning."""
    return float(numerator) / float(denominator) if float(denominator) != 0 else math.nan
