"""The names of coders, as in the tables of the published suites."""

from typing import Any

import pytest

from panscope import coders
from panscope.coders.wiring import Wiring
from panscope.planning.names import coder_name
from panscope.types import Site

LAYERS, D = 12, 64


def named(wiring: Wiring, architecture: str, width: int, sparsity: float, tag: str = "", **fields: Any) -> str:
    d_in = D * (len(wiring.reads) if wiring.wiring == "crosscoder" else 1)
    known = {"d_in": d_in, "d_out": d_in, "width": width, "sparsity": sparsity} | fields
    return coder_name(wiring, coders.config_type(architecture).read(known, "test"), LAYERS, tag)


def name(
    architecture: str, width: int, sparsity: float, sites: str = "resid_post", layer: int = 3, tag: str = ""
) -> str:
    reads, _, predicts = sites.partition("->")
    kind = "transcoder" if predicts else "sae"
    wiring = Wiring(wiring=kind, reads=(Site(layer, reads),), predicts=(Site(layer, predicts or reads),))
    return named(wiring, architecture, width, sparsity, tag)


def over(wiring: str, *sites: str) -> Wiring:
    found = [Site.parse(site) for site in sites]
    return Wiring.read({"wiring": wiring, "reads": found, "predicts": found}, "test")


def resid(*layers: int) -> tuple[str, ...]:
    return tuple(f"L{layer:02d}.resid_post" for layer in layers)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("topk", 512, 32), "L03R-8x-topk-k32"),
        (("jumprelu", 256, 1e-3, "attn_z"), "L03Z-4x-jumprelu-l1e-3"),
        (("topk", 512, 32, "mlp_in_no_gain->mlp_out"), "L03TC-8x-topk-k32"),
        (("topk", 512, 32, "mlp_in->mlp_out"), "L03TCIM-8x-topk-k32"),
        (("relu", 64, 2.5, "mlp_out", 0), "L00M-1x-relu-l2.5"),
        (("relu", 96, 0.04, "attn_out", 117), "L117A-1.5x-relu-l0.04"),
        (("jumprelu", 512, 2.5e-4, "mlp_in"), "L03I-8x-jumprelu-l2.5e-4"),
        (("topk", 512, 32, "resid_post", 3, "long"), "L03R-8x-topk-k32-long"),
        (("topk", 65536, 500), "L03R-1024x-topk-k500"),
        (("jumprelu", 512, 1000.0), "L03R-8x-jumprelu-l1e3"),
        (("batchtopk", 512, 32), "L03R-8x-batchtopk-k32"),
        (("matryoshka", 512, 32), "L03R-8x-matryoshka-k32"),
        (("gated", 512, 0.03), "L03R-8x-gated-l0.03"),
    ],
)
def test_names(arguments: tuple, expected: str):
    assert name(*arguments) == expected


def test_a_target_stands_in_the_place_of_the_coefficient():
    wiring = over("sae", *resid(3))
    assert named(wiring, "jumprelu", 512, 1.0, target_l0=32) == "L03R-8x-jumprelu-t32"
    assert named(wiring, "jumprelu", 512, 0.02, "b", target_l0=12.5) == "L03R-8x-jumprelu-t12.5-b"


@pytest.mark.parametrize(
    ("wiring", "expected"),
    [
        (over("multilayer", *resid(*range(LAYERS))), "all-R-8x-topk-k32"),
        (over("multilayer", *resid(*range(LAYERS - 1))), "L00-10-R-8x-topk-k32"),
        (over("multilayer", *resid(2, 3, 4, 5)), "L02-05-R-8x-topk-k32"),
        (over("multilayer", *resid(2, 3)), "L02-03-R-8x-topk-k32"),
        (over("multilayer", *resid(9, 2, 5)), "L02.05.09-R-8x-topk-k32"),
        (over("multilayer", "L00.mlp_out", "L11.mlp_out"), "L00.11-M-8x-topk-k32"),
    ],
    ids=str,
)
def test_multilayer_coders(wiring: Wiring, expected: str):
    assert named(wiring, "topk", 512, 32) == expected


@pytest.mark.parametrize(
    ("wiring", "expected"),
    [
        (over("crosscoder", *resid(*range(LAYERS))), "CC-all-R-8x-topk-k32"),
        (over("crosscoder", *resid(0, 1)), "CC-L00-01-R-8x-topk-k32"),
        (over("crosscoder", "L04.resid_post", "L04.mlp_out"), "CC-L04-RM-8x-topk-k32"),
        (over("crosscoder", "L04.mlp_out", "L04.resid_post", "L06.mlp_out"), "CC-L04.06-MR-8x-topk-k32"),
    ],
    ids=str,
)
def test_crosscoders_are_measured_against_one_site(wiring: Wiring, expected: str):
    """512 latents are 8x of the 64 of one site, however many there are."""
    assert named(wiring, "topk", 512, 32) == expected


def test_a_penalty_that_nobody_knows_is_not_in_a_name():
    wiring, fields = over("sae", "L03.resid_post"), {"d_in": D, "d_out": D, "width": 128, "sparsity": 1}
    for architecture, expected in {"relu": "L03R-2x-relu-tag", "topk": "L03R-2x-topk-k1-tag"}.items():
        coder = coders.config_type(architecture).read(fields, "test")
        assert coder_name(wiring, coder, LAYERS, "tag", knows_coefficient=False) == expected
