"""The names of coders, as in the table of the published suites."""

import pytest

from panscope import coders
from panscope.coders.wiring import Wiring
from panscope.suite.names import coder_name
from panscope.types import Site


def name(
    architecture: str, width: int, sparsity: float, sites: str = "resid_post", layer: int = 3, tag: str = ""
) -> str:
    reads, _, predicts = sites.partition("->")
    kind = "transcoder" if predicts else "sae"
    wiring = Wiring(wiring=kind, reads=Site(layer, reads), predicts=Site(layer, predicts or reads))
    fields = {"d_in": 64, "d_out": 64, "width": width, "sparsity": sparsity}
    return coder_name(wiring, coders.config_type(architecture).read(fields, "test"), tag)


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
    ],
)
def test_names(arguments: tuple, expected: str):
    assert name(*arguments) == expected
