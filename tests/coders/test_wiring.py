"""Which rows a wiring gives a coder, how its outputs are taken apart again, and what it refuses.

Shape letters: B rows of a batch, S sites.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panscope import coders
from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.types import ActivationBatch, Latents, Site, UserError

IN, OUT = Site(1, "mlp_in"), Site(1, "mlp_out")
STREAM = tuple(Site(layer, "resid_post") for layer in range(3))


def batch_of(widths: dict[Site, int], count: int = 4) -> ActivationBatch:
    number = torch.arange(count)
    return ActivationBatch({site: torch.randn(count, width) for site, width in widths.items()}, number, number, number)


def wiring_of(kind: Any, reads: tuple[Site, ...], predicts: tuple[Site, ...] | None = None) -> Wiring:
    return Wiring(wiring=kind, reads=reads, predicts=predicts or reads)


def test_an_sae_and_a_transcoder_take_the_rows_as_they_are() -> None:
    batch = batch_of({IN: 4, OUT: 5})
    x, y = wiring_of("transcoder", (IN,), (OUT,)).rows(batch)
    assert x is batch.rows[IN]
    assert y is batch.rows[OUT]
    x, y = wiring_of("sae", (OUT,)).rows(batch)
    assert x is y is batch.rows[OUT]


@given(st.integers(2, 4), st.integers(1, 5), st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_multilayer_stacks_site_after_site_and_takes_apart_again(sites: int, count: int, width: int) -> None:
    stream = tuple(Site(layer, "resid_post") for layer in range(sites))
    wiring, batch = wiring_of("multilayer", stream), batch_of(dict.fromkeys(stream, width), count)
    x, y = wiring.rows(batch)
    assert x.equal(y)
    assert x.shape == (sites * count, width)
    assert wiring.stacks == sites
    for number, site in enumerate(stream):
        for b in range(count):
            assert x[number * count + b].equal(batch.rows[site][b])
    apart = wiring.split(x, [width] * sites)
    assert [piece.equal(batch.rows[site]) for piece, site in zip(apart, stream, strict=True)] == [True] * sites


def test_a_crosscoder_concatenates_sites_of_any_width_and_takes_apart_again() -> None:
    sites = (STREAM[0], OUT, IN)
    widths = {STREAM[0]: 4, OUT: 2, IN: 3}
    wiring, batch = wiring_of("crosscoder", sites), batch_of(widths)
    x, y = wiring.rows(batch)
    assert x.equal(y)
    assert x.shape == (4, 9)
    assert wiring.stacks == 1
    for b in range(4):
        assert x[b].tolist() == [value for site in sites for value in batch.rows[site][b].tolist()]
    apart = wiring.split(x, [4, 2, 3])
    assert all(piece.equal(batch.rows[site]) for piece, site in zip(apart, sites, strict=True))


def test_one_site_is_split_into_itself() -> None:
    y = torch.randn(4, 5)
    assert all(found.equal(y) for found in wiring_of("transcoder", (IN,), (OUT,)).split(y, [5]))


@pytest.mark.parametrize("sparse", [False, True])
def test_the_codes_behind_each_site(sparse: bool) -> None:
    """Of a multilayer coder those of its own rows, of all others the same."""
    values = torch.arange(1.0, 13.0).view(6, 2)
    indices = torch.tensor([[0, 1]]).expand(6, 2) if sparse else None
    codes = Latents(values, 2, indices)
    found = wiring_of("multilayer", STREAM).codes(codes)
    assert [one.dense().tolist() for one in found] == [values[:2].tolist(), values[2:4].tolist(), values[4:].tolist()]
    assert [one is codes for one in wiring_of("crosscoder", STREAM).codes(codes)] == [True] * 3
    assert [one is codes for one in wiring_of("sae", (OUT,)).codes(codes)] == [True]


@pytest.mark.parametrize(
    ("kind", "reads", "predicts", "message"),
    [
        (
            "sae",
            ["L01.mlp_in"],
            ["L01.mlp_out"],
            "predicts is L01.mlp_out, but wiring 'sae' predicts the site it reads",
        ),
        ("transcoder", ["L01.mlp_in"], ["L01.mlp_in"], "predicts another site than it reads, L01.mlp_in"),
        ("sae", ["L00.resid_post", "L01.resid_post"], None, "'sae' takes one site"),
        ("sae", [], None, "'sae' takes one site"),
        ("transcoder", ["L00.mlp_in", "L01.mlp_in"], ["L00.mlp_out", "L01.mlp_out"], "'transcoder' takes one site"),
        ("transcoder", ["L00.mlp_in"], ["L00.mlp_out", "L01.mlp_out"], "'transcoder' takes one site"),
        ("multilayer", ["L00.resid_post"], None, "'multilayer' takes several sites"),
        ("crosscoder", ["L00.resid_post"], None, "'crosscoder' takes several sites"),
        ("crosscoder", ["L00.mlp_out", "L01.mlp_out"], ["L01.mlp_out", "L00.mlp_out"], "predicts the site it reads"),
        ("multilayer", ["L00.mlp_out", "L00.mlp_out"], None, "name each site once"),
        ("crosscoder", ["L00.mlp_out", "L01.mlp_out", "L00.mlp_out"], None, "name each site once"),
        ("sae", ["L01.mlp"], None, "'mlp' is unknown"),
        ("sae", "L01.mlp_out", None, "reads is 'L01.mlp_out'"),
        ("ladder", ["L01.mlp_out"], None, "wiring is 'ladder'"),
    ],
)
def test_sites_that_do_not_fit_are_refused_in_one_sentence(kind: str, reads: Any, predicts: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Wiring.read({"wiring": kind, "reads": reads, "predicts": predicts or reads}, "suite.toml")
    assert str(caught.value).startswith("suite.toml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["sae", "transcoder", "multilayer", "crosscoder"])
def test_a_wiring_is_written_as_text_and_read_back(kind: str) -> None:
    reads = STREAM if kind in ("multilayer", "crosscoder") else (IN,)
    wiring = wiring_of(kind, reads, (OUT,) if kind == "transcoder" else None)
    fields = wiring.model_dump(mode="json")
    assert fields["reads"] == [str(site) for site in reads]
    assert Wiring.read(fields, "config.json") == wiring
    assert wiring.sites() == set(reads) | set(wiring.predicts)


@pytest.mark.parametrize("architecture", coders.ARCHITECTURES)
@pytest.mark.parametrize("kind", ["sae", "transcoder", "multilayer", "crosscoder"])
def test_every_architecture_works_in_every_wiring(architecture: str, kind: str) -> None:
    """Rows in, one reconstruction for each predicted site out, in the shapes of those sites."""
    widths = dict.fromkeys(STREAM, 6) | {IN: 6, OUT: 4}
    reads = STREAM if kind in ("multilayer", "crosscoder") else (IN,)
    wiring, batch = wiring_of(kind, reads, (OUT,) if kind == "transcoder" else None), batch_of(widths)
    x, y = wiring.rows(batch)
    fields = {"d_in": x.shape[1], "d_out": y.shape[1], "width": 16, "sparsity": 2, "encoder_init": "own"}
    coder = coders.build(coders.config_type(architecture).read(fields | {"prefixes": (0.5, 1)}, "test"))
    coder.initialise(torch.Generator().manual_seed(0))
    wired = WiredCoder(wiring, coder, Normaliser(kind="token_norm", scale_in=1, scale_out=1))
    codes = wired.encode(wiring.gather(batch.rows))
    apart = wiring.split(wired.decode(codes, x), [widths[site] for site in wiring.predicts])
    assert [piece.shape for piece in apart] == [batch.rows[site].shape for site in wiring.predicts]
    assert [len(one.values) for one in wiring.codes(codes)] == [4] * len(wiring.predicts)


def test_a_wired_coder_without_a_normaliser_is_its_coder() -> None:
    fields = {"d_in": 6, "d_out": 6, "width": 16, "sparsity": 2}
    coder = coders.build(coders.config_type("topk").read(fields, "test")).initialise(torch.Generator().manual_seed(0))
    wired, x = WiredCoder(wiring_of("sae", (OUT,)), coder), torch.randn(5, 6)
    assert wired.encode(x).dense().equal(coder.encode(x).dense())
    assert wired.decode(wired.encode(x), x).equal(coder.decode(coder.encode(x), x))
    # Raw rows of another precision are taken in the coder's own.
    assert wired.encode(x.bfloat16()).values.equal(wired.encode(x.bfloat16().float()).values)
