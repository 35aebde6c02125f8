"""Coders of several sites, per-row normalisers and skips: each site's numbers against the float64 oracle.

Shape letters: D width of a site, S sites, F latents.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import tests.support.definitions as defined
from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.evals.accumulator import Result
from panscope.types import Site
from tests.evals.test_oracle import TEXT, forward, row_of_relu, rows_of
from tests.support.averaging_lm import (
    MLP_IN,
    MLP_OUT,
    RESID0,
    RESID1,
    SEQUENCES,
    D,
    F,
    FakeLM,
    a_batch,
    a_coder,
    built,
    measure,
    over,
)  # fmt: skip

SITES = [RESID0, MLP_OUT, RESID1]
STANDARDISE = Normaliser(kind="standardise", scale_in=1, scale_out=1)
TOKEN_NORM = Normaliser(kind="token_norm", scale_in=1, scale_out=1)
Row = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
ASKED = defined.Asked(probes=6)


def found(wired: WiredCoder) -> Result:
    return measure({"c": wired}, [a_batch(TEXT.sequences)], probes=ASKED.probes)["c"]


def at_site(site: Site, row: Row, W_dec: np.ndarray, reads: Site | None = None) -> defined.Group:
    return defined.measured(forward, TEXT, defined.Coded(reads or site, site, row, W_dec), ASKED)


def interventions_per_pass(groups: list[defined.Group]) -> list[defined.Token]:
    """The rows of all sites: those of each site are sequences of their own."""
    step = 100
    return [
        defined.Token(row.sequence + step * n, row.position, row.subset, row.of)
        for n, group in enumerate(groups)
        for row in group.rows
    ]


def mean_of(sites: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: sum(site[name] for site in sites) / len(sites)
        for name, value in sites[0].items()
        if isinstance(value, int | float)
    }


@pytest.mark.parametrize(
    "sites", [[RESID0, RESID1], SITES, [RESID1, RESID0]], ids=lambda sites: " ".join(map(str, sites))
)
def test_a_multilayer_coder_is_an_sae_at_each_of_its_sites(sites: list[Site]):
    """Replaced at one site at a time; on top stand the means over sites, but for how often latents fire.

    Of that, the rows of all sites count, and the window stays in tokens.
    """
    coder = built("relu", D)
    result = found(over("multilayer", sites, coder))
    groups = [at_site(site, row_of_relu(coder), coder.W_dec.detach().numpy()) for site in sites]
    expected = [defined.fields_of(group, ASKED) for group in groups]
    fields = dict(result.fields)
    assert list(fields["sites"]) == [str(site) for site in sites]
    for site, numbers in zip(sites, expected, strict=True):
        assert not defined.differences(fields["sites"][str(site)], numbers, 1e-6)
    firing = defined.firing_of(interventions_per_pass(groups), ()) | {"dead_window": 31}
    for name in ("dead_fraction", "dead_window", "dense_fraction", "frequency", "never_fired"):
        assert not defined.differences(fields[name], firing[name], 0), name
    shares = ("dead_fraction", "dense_fraction", "dead_window")
    means = {name: value for name, value in mean_of(expected).items() if name not in shares}
    assert not defined.differences({name: fields[name] for name in means}, means, 1e-6)
    assert fields["dead_fraction"] <= min(numbers["dead_fraction"] for numbers in expected)
    assert isinstance(fields["tokens"], int)
    assert fields["tokens"] == 31
    positions = [row for site, group in zip(sites, groups, strict=True) for row in defined.positions_of(group, site)]
    assert not defined.differences(rows_of(result.tables["positions"]), positions, 1e-6)
    latents = defined.latents_of(interventions_per_pass(groups))
    for name in ("firings", "frequency", "mean", "max"):
        assert not defined.differences(result.tables["latents"][name], [one[name] for one in latents], 1e-6), name


def test_intervals_of_means_over_sites_are_as_wide_as_those_of_sites_on_average():
    coder = built("relu", D)
    fields = found(over("multilayer", SITES, coder)).fields
    for name in ("fvu", "delta_loss", "l0", "kl"):
        halves = [np.diff(site["intervals"][name])[0] / 2 for site in fields["sites"].values()]
        middle = fields[name]
        assert fields["intervals"][name] == pytest.approx([middle - np.mean(halves), middle + np.mean(halves)])


def test_intervals_of_shares_over_layers_are_on_the_safe_side():
    """In how many sequences a latent fired at one layer or another is not kept: the interval holds the one it gives."""
    sites, coder = [RESID0, RESID1], built("relu", D)
    intervals = found(over("multilayer", sites, coder)).fields["intervals"]
    groups = [at_site(site, row_of_relu(coder), coder.W_dec.detach().numpy()) for site in sites]
    true = defined.firing_of([row for group in groups for row in group.rows], ())["intervals"]
    for name in ("dead_fraction", "dense_fraction"):
        assert intervals[name][0] <= true[name][0] <= true[name][1] <= intervals[name][1]
    assert true["dense_fraction"][0] < true["dense_fraction"][1]


def test_where_sites_are_of_one_kind_layers_are_compared_in_their_order():
    coder = built("relu", D)
    there, back = (found(over("multilayer", sites, coder)) for sites in ([RESID0, RESID1], [RESID1, RESID0]))
    assert not defined.differences(back.fields["layers"], there.fields["layers"], 1e-12)
    assert list(there.fields["layers"]["sites"]) == ["L00.resid_post", "L01.resid_post"]
    tables = [{name: list(column) for name, column in one.tables["layers"].items()} for one in (back, there)]
    assert not defined.differences(tables[0], tables[1], 1e-12)
    mixed = found(over("multilayer", SITES, coder))
    assert "layers" not in mixed.fields
    assert "layers" not in mixed.tables


def test_a_latent_that_fires_at_one_layer_alone_is_not_dead():
    """Two latents, each for one layer: dead at the other, alive in the whole."""

    class Layered(FakeLM):
        """The two sites differ in the sign of their first number."""

        def run(self, *args: Any, **kwargs: Any) -> Any:
            reading = super().run(*args, **kwargs)
            for site, x in reading.activations.items():
                x[..., 0] = 1.0 if site == RESID0 else -1.0
            return reading

    coder = built("relu", D)
    with torch.no_grad():
        coder.W_enc.zero_()
        coder.b_enc.fill_(-1e-3)
        coder.W_enc[0, 0], coder.W_enc[1, 0] = 1.0, -1.0
    fields = measure({"m": over("multilayer", [RESID0, RESID1], coder)}, lm=Layered())["m"].fields
    assert [one["dead_fraction"] for one in fields["sites"].values()] == [1 - 1 / F, 1 - 1 / F]
    assert fields["dead_fraction"] == 1 - 2 / F
    assert (fields["l0"], fields["dead_window"]) == (1, 20)


def rows_of_crosscoder(coder: Any, sites: list[Site], n: int, ids: list[int], t: int) -> tuple[Any, Any]:
    """The codes of one token from all sites at once, and what they say of the n-th site."""
    w = {name: tensor.numpy() for name, tensor in coder.tensors().items()}
    seen, _ = forward(ids, {})
    own = slice(n * D, (n + 1) * D)
    codes = np.maximum(w["W_enc"] @ np.concatenate([seen[site, t] for site in sites]) + w["b_enc"], 0)
    return codes, codes @ w["W_dec"][:, own] + w["b_dec"][own]


def group_of_crosscoder(coder: Any, sites: list[Site], n: int) -> defined.Group:
    """What a site of a crosscoder must show: each row's codes come by its place, as they depend on other sites too."""
    made: dict[tuple[float, ...], tuple[Any, Any]] = {}
    for ids in TEXT.sequences:
        for t in range(len(ids)):
            seen, _ = forward(ids, {})
            made[tuple(seen[sites[n], t])] = rows_of_crosscoder(coder, sites, n, ids, t)
    W_dec = coder.W_dec.detach().numpy()[:, n * D : (n + 1) * D]
    return at_site(sites[n], lambda x: made[tuple(x)], W_dec)


def test_a_crosscoder_shares_its_codes_and_is_measured_site_by_site():
    coder = built("relu", len(SITES) * D)
    fields = found(over("crosscoder", SITES, coder)).fields
    apart = fields.pop("sites")
    for n, site in enumerate(SITES):
        expected = defined.fields_of(group_of_crosscoder(coder, SITES, n), ASKED)
        assert not defined.differences(apart[str(site)], expected, 1e-6), site
    first = apart[str(RESID0)]
    for name in ("l0", "l1", "dead_fraction", "dense_fraction", "dead_window", "frequency"):
        assert fields[name] == first[name]  # one code
        assert all(one[name] == first[name] for one in apart.values())
    assert not defined.differences({name: fields[name] for name in mean_of([first])}, mean_of([*apart.values()]), 1e-12)
    assert fields["dead_fraction"] >= 2 / F
    for name in ("ce_spliced", "uniformity"):
        assert len({one[name] for one in apart.values()}) == len(SITES)
    assert "layers" not in fields


def spliced_at(wired: WiredCoder) -> list[tuple[Site, bool]]:
    """Where the model was changed, and whether special tokens were left alone."""
    lm, content = FakeLM(), a_batch(SEQUENCES).content
    measure({"c": wired}, lm=lm)
    return [(site, bool(torch.equal(after[~content], before[~content]))) for site, before, after in lm.splices]


@pytest.mark.parametrize("wiring", ["multilayer", "crosscoder"])
def test_one_site_is_replaced_at_a_time_and_special_tokens_never(wiring: str):
    width = D if wiring == "multilayer" else 2 * D
    seen = spliced_at(over(wiring, [RESID0, RESID1], built("relu", width)))
    # At each site: the reconstruction, zeros, the mean.
    assert sorted(seen) == sorted([(RESID0, True), (RESID1, True)] * 3)


def test_several_sites_do_not_disturb_other_coders():
    many = {
        "a": a_coder(RESID1, RESID1),
        "m": over("multilayer", [RESID0, RESID1], built("relu", D)),
        "c": over("crosscoder", [MLP_OUT, RESID1], built("relu", 2 * D)),
        "tc": a_coder(MLP_IN, MLP_OUT),
    }
    all_of_them = measure(many, probes=5)
    for name, coder in many.items():
        alone = measure({name: coder}, probes=5)[name]
        assert not defined.differences(all_of_them[name].fields, alone.fields, 0)


@pytest.mark.parametrize("normaliser", [STANDARDISE, TOKEN_NORM], ids=lambda n: n.kind)
@pytest.mark.parametrize("sites", [[RESID1], [RESID0, RESID1]], ids=["sae", "multilayer"])
def test_a_per_row_normaliser_is_applied_to_raw_rows_and_undone(normaliser: Normaliser, sites: list[Site]):
    coder = built("relu", D)

    def row(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        middle, size, added = (
            (x.mean(), x.std(ddof=1), 1e-5)
            if normaliser.kind == "standardise"
            else (0.0, np.linalg.norm(x) / D**0.5, 0.0)
        )
        codes, made = row_of_relu(coder)((x - middle) / (size + added))
        return codes, made * size + middle

    wiring = "sae" if len(sites) == 1 else "multilayer"
    fields = found(over(wiring, sites, coder, normaliser)).fields
    for site in sites:
        expected = defined.fields_of(at_site(site, row, coder.W_dec.detach().numpy()), ASKED)
        assert not defined.differences(fields["sites"][str(site)] if len(sites) > 1 else fields, expected, 1e-6)
    bare = found(over(wiring, sites, coder)).fields
    assert bare["fvu"] != pytest.approx(fields["fvu"], rel=1e-3)


def test_a_crosscoders_sites_are_standardised_apart():
    """Against a crosscoder without a normaliser whose every site's rows come standardised."""
    parts = ({"width": D, "scale": 1.0}, {"width": D, "scale": 1.0})
    normaliser = Normaliser.read({"kind": "standardise", "scale_in": 1, "scale_out": 1, "parts": parts}, "test")
    coder = built("relu", 2 * D)
    wired = over("crosscoder", [RESID0, RESID1], coder, normaliser)
    x = torch.randn(5, 2 * D, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 3 + 1
    pieces = [x[:, :D], x[:, D:]]
    inside = torch.cat([(p - p.mean(1, keepdim=True)) / (p.std(1, keepdim=True) + 1e-5) for p in pieces], dim=1)
    latents = coder.encode(inside)
    assert torch.allclose(wired.encode(x).dense(), latents.dense(), rtol=1e-12)
    made = coder.decode(latents, inside)
    expected = [
        made[:, n * D : (n + 1) * D] * p.std(1, keepdim=True) + p.mean(1, keepdim=True) for n, p in enumerate(pieces)
    ]
    assert torch.allclose(wired.decode(latents, x), torch.cat(expected, dim=1), rtol=1e-12)


def test_a_transcoders_skip_is_part_of_what_is_spliced_in():
    coder = built("relu", D, skip=True, encoder_init="own")
    skip, W_dec = coder.tensors()["W_skip"].numpy(), coder.W_dec.detach().numpy()

    def row(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes, made = row_of_relu(coder)(x)
        return codes, made + skip @ x

    fields = found(WiredCoder(Wiring(wiring="transcoder", reads=(MLP_IN,), predicts=(MLP_OUT,)), coder)).fields
    expected = defined.fields_of(at_site(MLP_OUT, row, W_dec, MLP_IN), ASKED)
    assert not defined.differences(fields, expected, 1e-6)
    without = defined.fields_of(at_site(MLP_OUT, row_of_relu(coder), W_dec, MLP_IN), ASKED)
    assert fields["fvu"] != pytest.approx(without["fvu"], rel=1e-2)
    assert "sites" not in fields
