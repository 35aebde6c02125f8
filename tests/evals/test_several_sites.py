"""Coders of several sites, per-row normalisers and skips: each site's numbers against one token at a time in numpy.

Shape letters: D width of a site, S sites, F latents.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_evaluate import (
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
    all_text,
    brute_evaluation,
    brute_pass,
    brute_relu,
    close,
    is_content,
)  # fmt: skip

from panscope import coders
from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.evals.run import evaluate
from panscope.types import Site

SITES = [RESID0, MLP_OUT, RESID1]
STANDARDISE = Normaliser(kind="standardise", scale_in=1, scale_out=1)
TOKEN_NORM = Normaliser(kind="token_norm", scale_in=1, scale_out=1)
Row = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def built(architecture: str, d: int, **fields: Any) -> Any:
    """A random float64 coder with two latents that never fire."""
    made = {"d_in": d, "d_out": d, "width": F, "sparsity": 3} | fields
    coder: Any = coders.build(coders.config_type(architecture).read(made, "test"))
    coder.initialise(torch.Generator().manual_seed(2)).double()
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        coder.b_enc[:2] = -100.0
        coder.b_dec += torch.randn(d, generator=g)
        if made.get("skip"):
            coder.W_skip += torch.randn(d, d, generator=g)
    return coder


def over(wiring: str, sites: list[Site]) -> Wiring:
    return Wiring.read({"wiring": wiring, "reads": sites, "predicts": sites}, "test")


def mean_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: sum(one[name] for one in results) / len(results) for name in results[0]}


def firing_latents(sites: list[Site], row: Row) -> np.ndarray:
    """[F] on how many content tokens of all sites together each latent fires."""
    lm, counts = FakeLM(), np.zeros(F)
    for ids in SEQUENCES:
        seen, _ = brute_pass(lm, ids, {})
        for t, token in enumerate(ids):
            for site in sites if is_content(token) else []:
                counts += row(seen[site, t])[0] > 0
    return counts


@pytest.mark.parametrize(
    "sites", [[RESID0, RESID1], SITES, [RESID1, RESID0]], ids=lambda sites: " ".join(map(str, sites))
)
def test_a_multilayer_coder_is_an_sae_at_each_of_its_sites(sites: list[Site]):
    """Replaced at one site at a time; on top stand the means over sites, but for latents that fire at no layer.

    The window stays in tokens.
    """
    lm, coder = FakeLM(), built("relu", D)
    wired = WiredCoder(over("multilayer", sites), coder)
    result = evaluate(lm, all_text, {"m": wired}, tokens=None)["m"]
    brute = [brute_evaluation(FakeLM(), site, site, brute_relu(coder)) for site in sites]
    assert list(result["sites"]) == [str(site) for site in sites]
    for site, expected in zip(sites, brute, strict=True):
        assert result["sites"][str(site)] == close(expected)
    counts = firing_latents(sites, brute_relu(coder))
    rows = brute[0]["tokens"] * len(sites)
    whole = mean_of(brute) | {
        "dead_fraction": (counts == 0).sum() / F,
        "dense_fraction": (counts > 0.1 * rows).sum() / F,
    }
    sites_apart = result.pop("sites")
    assert result == close(whole)
    assert result["dead_fraction"] <= min(one["dead_fraction"] for one in sites_apart.values())
    assert isinstance(result["tokens"], int)
    assert result["tokens"] == 20


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
    wired = WiredCoder(over("multilayer", [RESID0, RESID1]), coder)
    result = evaluate(Layered(), all_text, {"m": wired}, tokens=None)["m"]
    assert [one["dead_fraction"] for one in result["sites"].values()] == [1 - 1 / F, 1 - 1 / F]
    assert result["dead_fraction"] == 1 - 2 / F
    assert (result["l0"], result["dead_window"]) == (1, 20)


def brute_crosscoder(coder: Any, sites: list[Site]) -> dict[Site, float]:
    """FVU at each site, the mean taken over content tokens, codes from all sites at once."""
    lm, w = FakeLM(), {name: tensor.numpy() for name, tensor in coder.tensors().items()}
    y: dict[Site, list[np.ndarray]] = {site: [] for site in sites}
    errors = dict.fromkeys(sites, 0.0)
    for ids in SEQUENCES:
        seen, _ = brute_pass(lm, ids, {})
        for t in (t for t, token in enumerate(ids) if is_content(token)):
            pre = w["b_enc"].copy()
            for n, site in enumerate(sites):
                pre += w["W_enc"][:, n * D : (n + 1) * D] @ seen[site, t]
            codes = np.maximum(pre, 0)
            for n, site in enumerate(sites):
                made = codes @ w["W_dec"][:, n * D : (n + 1) * D] + w["b_dec"][n * D : (n + 1) * D]
                errors[site] += float(((made - seen[site, t]) ** 2).sum())
                y[site].append(seen[site, t])
    return {site: errors[site] / float(((np.array(y[site]) - np.mean(y[site], axis=0)) ** 2).sum()) for site in sites}


def test_a_crosscoder_shares_its_codes_and_is_measured_site_by_site():
    lm, coder = FakeLM(), built("relu", len(SITES) * D)
    wired = WiredCoder(over("crosscoder", SITES), coder)
    result = evaluate(lm, all_text, {"cc": wired}, tokens=None)["cc"]
    apart = result.pop("sites")
    expected = brute_crosscoder(coder, SITES)
    assert {site: one["fvu"] for site, one in apart.items()} == {
        str(site): pytest.approx(value, rel=1e-9) for site, value in expected.items()
    }
    for name in ("l0", "l1", "dead_fraction", "dense_fraction", "dead_window"):
        assert len({one[name] for one in apart.values()}) == 1  # one code
        assert result[name] == apart[str(RESID0)][name]
    numbers = {name: pytest.approx(value, rel=1e-12) for name, value in mean_of(list(apart.values())).items()}
    assert result == numbers
    assert result["dead_fraction"] >= 2 / F
    assert len({one["ce_spliced"] for one in apart.values()}) == len(SITES)


def spliced_at(wired: WiredCoder) -> list[tuple[Site, bool]]:
    """Where the model was changed, and whether special tokens were left alone."""
    lm, content = FakeLM(), a_batch(SEQUENCES).content
    evaluate(lm, all_text, {"c": wired}, tokens=None)
    return [(site, bool(torch.equal(after[~content], before[~content]))) for site, before, after in lm.splices]


@pytest.mark.parametrize("wiring", ["multilayer", "crosscoder"])
def test_one_site_is_replaced_at_a_time_and_special_tokens_never(wiring: str):
    width = D if wiring == "multilayer" else 2 * D
    seen = spliced_at(WiredCoder(over(wiring, [RESID0, RESID1]), built("relu", width)))
    # At each site: the reconstruction, zeros, the mean.
    assert sorted(seen) == sorted([(RESID0, True), (RESID1, True)] * 3)


def test_several_sites_do_not_disturb_other_coders():
    single, multilayer = a_coder(RESID1, RESID1), WiredCoder(over("multilayer", [RESID0, RESID1]), built("relu", D))
    cross = WiredCoder(over("crosscoder", [MLP_OUT, RESID1]), built("relu", 2 * D))
    many = {"a": single, "m": multilayer, "c": cross, "tc": a_coder(MLP_IN, MLP_OUT)}
    together = evaluate(FakeLM(), all_text, many, tokens=None)
    for name, coder in many.items():
        assert together[name] == evaluate(FakeLM(), all_text, {name: coder}, tokens=None)[name]


@pytest.mark.parametrize("normaliser", [STANDARDISE, TOKEN_NORM], ids=lambda n: n.kind)
@pytest.mark.parametrize("sites", [[RESID1], [RESID0, RESID1]], ids=["sae", "multilayer"])
def test_a_per_row_normaliser_is_applied_to_raw_rows_and_undone(normaliser: Normaliser, sites: list[Site]):
    coder = built("relu", D)

    def row(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        middle, size = (
            (x.mean(), x.std(ddof=1)) if normaliser.kind == "standardise" else (0.0, np.linalg.norm(x) / D**0.5)
        )
        codes, made = brute_relu(coder)((x - middle) / (size + 1e-5))
        return codes, made * (size + 1e-5) + middle

    wired = WiredCoder(over("sae" if len(sites) == 1 else "multilayer", sites), coder, normaliser)
    result = evaluate(FakeLM(), all_text, {"c": wired}, tokens=None)["c"]
    for site in sites:
        expected = brute_evaluation(FakeLM(), site, site, row)
        assert (result["sites"][str(site)] if len(sites) > 1 else result) == close(expected)
    bare = evaluate(FakeLM(), all_text, {"c": WiredCoder(wired.wiring, coder)}, tokens=None)["c"]
    assert bare["fvu"] != pytest.approx(result["fvu"], rel=1e-3)


def test_a_crosscoders_sites_are_standardised_apart():
    """Against a crosscoder without a normaliser whose every site's rows come standardised."""
    parts = ({"width": D, "scale": 1.0}, {"width": D, "scale": 1.0})
    normaliser = Normaliser.read({"kind": "standardise", "scale_in": 1, "scale_out": 1, "parts": parts}, "test")
    coder = built("relu", 2 * D)
    wired = WiredCoder(over("crosscoder", [RESID0, RESID1]), coder, normaliser)
    x = torch.randn(5, 2 * D, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 3 + 1
    pieces = [x[:, :D], x[:, D:]]
    inside = torch.cat([(p - p.mean(1, keepdim=True)) / (p.std(1, keepdim=True) + 1e-5) for p in pieces], dim=1)
    latents = coder.encode(inside)
    assert torch.allclose(wired.encode(x).dense(), latents.dense(), rtol=1e-12)
    made = coder.decode(latents, inside)
    expected = [
        made[:, n * D : (n + 1) * D] * (p.std(1, keepdim=True) + 1e-5) + p.mean(1, keepdim=True)
        for n, p in enumerate(pieces)
    ]
    assert torch.allclose(wired.decode(latents, x), torch.cat(expected, dim=1), rtol=1e-12)


def test_a_transcoders_skip_is_part_of_what_is_spliced_in():
    coder = built("relu", D, skip=True, encoder_init="own")
    skip = coder.tensors()["W_skip"].numpy()

    def row(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes, made = brute_relu(coder)(x)
        return codes, made + skip @ x

    wired = WiredCoder(Wiring(wiring="transcoder", reads=(MLP_IN,), predicts=(MLP_OUT,)), coder)
    result = evaluate(FakeLM(), all_text, {"tc": wired}, tokens=None)["tc"]
    assert result == close(brute_evaluation(FakeLM(), MLP_IN, MLP_OUT, row))
    without = brute_evaluation(FakeLM(), MLP_IN, MLP_OUT, brute_relu(coder))
    assert result["fvu"] != pytest.approx(without["fvu"], rel=1e-2)
    assert "sites" not in result
