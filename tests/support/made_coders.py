"""Coders to write and read: every architecture and wiring, with random weights whose reconstructions are of size 1."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from panscope import coders
from panscope.coders.base import Coder
from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import UNIT, WiredCoder, Wiring
from panscope.types import Site

D_IN, D_OUT, WIDTH, ROWS = 12, 10, 40, 64
READS, PREDICTS = Site(3, "mlp_in"), Site(3, "mlp_out")
MakeCoder = Callable[..., WiredCoder]


def filled(coder: Coder) -> Coder:
    """The coder with a random number in every parameter, its thresholds and running threshold above 0."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in coder.tensors().items():
        draw = torch.randn(tensor.shape) * (0.3 if tensor.dim() == 2 else 0.1)
        tensors[name] = draw.abs() + 0.1 if "threshold" in name else draw
    return coder.load_tensors(tensors)


def make(
    architecture: str,
    *,
    site: Site = READS,
    predicts: Site | None = None,
    sites: tuple[Site, ...] = (),
    normaliser: str = "none",
    **fields: Any,
) -> WiredCoder:
    """A coder of an architecture: an SAE at a site, or a transcoder where `predicts` is given."""
    torch.manual_seed(sum(map(ord, f"{architecture}{sorted(fields.items())}")))
    known = {"architecture": architecture, "d_in": D_IN, "d_out": D_IN, "width": WIDTH, "sparsity": 4.0}
    known |= {"decoder_norm": "free", "encoder_init": "own"} | fields
    coder = filled(coders.build(coders.config_type(architecture).read(known, "the test")))
    if sites:
        wiring = Wiring(wiring="multilayer", reads=sites, predicts=sites)
    else:
        kind = "transcoder" if predicts else "sae"
        wiring = Wiring.read({"wiring": kind, "reads": [site], "predicts": [predicts or site]}, "the test")
    own = UNIT
    if normaliser != "none":
        own = Normaliser.read({"kind": normaliser, "scale_in": 1, "scale_out": 1}, "the test")
    return WiredCoder(wiring, coder, own)


@torch.no_grad()
def reconstructed(wired: WiredCoder, x: Tensor) -> Tensor:
    """[B, E]."""
    return wired.decode(wired.encode(x), x)
