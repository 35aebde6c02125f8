"""Every architecture with every option, in the shape of every wiring: the coders and rows that the contracts are about.

Shape letters: B rows, D input width, E output width, F latents.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from panscope import coders
from panscope.coders.base import Coder, CoderConfig
from panscope.coders.jumprelu import JumpReLUCoder
from panscope.ops.base import Rows

B, D, F = 7, 6, 10
SPARSITY = {"relu": 0.3, "topk": 3, "batchtopk": 3, "matryoshka": 3, "jumprelu": 0.2, "gated": 0.25}
PREFIXES = {"prefixes": (0.2, 0.5, 1.0)}
AUXK = {"auxk_coefficient": 0.4, "auxk": 2}
BY_NORM = {"selection": "decoder_norm"}
WIDE = {"bandwidth": 0.8, "threshold_init": 0.3}
SELECTING: dict[str, dict[str, Any]] = {
    "": {},
    "by_norm": BY_NORM,
    "auxk": AUXK,
    "auxk_more_than_dead": AUXK | BY_NORM | {"auxk": 9},
    "auxk_default": {"auxk_coefficient": 1 / 32},
    "auxk_bias": AUXK | {"auxk_bias": True},
}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "relu": {"": {}, "prefixes": PREFIXES},
    "topk": SELECTING
    | {
        "multi": {"multi_coefficient": 0.125, "multi_factor": 2},
        "multi_up_to_the_width": {"multi_coefficient": 0.5},
        "all": AUXK | BY_NORM | PREFIXES | {"multi_coefficient": 0.125, "multi_factor": 2},
        "prefixes": PREFIXES,
    },
    "batchtopk": SELECTING | {"prefixes": PREFIXES, "all": AUXK | BY_NORM | PREFIXES},
    "matryoshka": {name: PREFIXES | fields for name, fields in SELECTING.items()},
    "jumprelu": {
        "": WIDE,
        "prefixes": WIDE | PREFIXES,
        "target_of_batch": WIDE | {"target_l0": 2.5, "target_factor": 1.5},
        "target_of_row": WIDE | {"target_l0": 2.5, "target_of": "row"},
        "frequency": WIDE | {"frequency_penalty": 0.7, "frequency_limit": 0.3},
        "all": WIDE | PREFIXES | {"target_l0": 4, "target_of": "row", "target_factor": 2, "frequency_penalty": 0.05},
    },
    "gated": {"": {}, "prefixes": PREFIXES},
}
SHAPES: dict[str, dict[str, Any]] = {
    "sae": {"d_in": D, "d_out": D},
    "sae_no_encoder_bias": {"d_in": D, "d_out": D, "pre_encoder_bias": True, "encoder_bias": False},
    "sae_pre_bias": {"d_in": D, "d_out": D, "pre_encoder_bias": True},
    "transcoder": {"d_in": D, "d_out": D + 3, "encoder_init": "own"},
    "transcoder_skip": {"d_in": D, "d_out": D + 3, "encoder_init": "own", "skip": True},
    "crosscoder": {"d_in": 3 * D, "d_out": 3 * D, "encoder_init": "own"},
}
NORMS = ("unit", "free")


def _param(architecture: str, shape: str, norm: str, option: str) -> Any:
    fields = SHAPES[shape] | OPTIONS[architecture][option] | {"decoder_norm": norm}
    return pytest.param(architecture, fields, id="-".join(filter(None, (architecture, shape, norm, option))))


EVERYTHING = [
    _param(architecture, shape, norm, option)
    for architecture, options in OPTIONS.items()
    for shape in SHAPES
    for norm in NORMS
    for option in options
]
every_case = pytest.mark.parametrize(("architecture", "fields"), EVERYTHING)
every_option = pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        _param(architecture, "sae_pre_bias", "unit", option)
        for architecture in OPTIONS
        for option in OPTIONS[architecture]
    ],
)
"""For what no shape can change."""
every_shape = pytest.mark.parametrize(
    ("architecture", "fields"),
    [_param(architecture, shape, norm, next(iter(OPTIONS[architecture])))
     for architecture in OPTIONS for shape in SHAPES for norm in NORMS],
)  # fmt: skip
"""For what no option can change."""


def config_of(architecture: str, fields: dict[str, Any]) -> CoderConfig:
    shared = {"width": F, "sparsity": SPARSITY[architecture]}
    return coders.config_type(architecture).read(shared | fields, "test")


def random_coder(architecture: str, fields: dict[str, Any], seed: int = 0) -> Coder:
    """Every parameter random, decoder vectors of unit norm where the configuration says so, in float64."""
    coder = coders.build(config_of(architecture, fields)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in coder.parameters():
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.6
            parameter.copy_(draw if parameter.requires_grad else draw * 0)
        if isinstance(coder, JumpReLUCoder):
            coder.threshold.copy_(coder.threshold.abs() * 0.4 + 0.05)
        if coder.config.decoder_norm == "unit":
            coder.W_dec.div_(coder.W_dec.square().sum(dim=1, keepdim=True).sqrt())
    return coder


def random_rows(coder: Coder, *, weighted: bool = False, dead: tuple[int, ...] = (1, 4, 5, 8), seed: int = 1) -> Rows:
    """B rows; y is x but for a transcoder. `weighted`: each row counts differently in the squared error."""
    config, generator = coder.config, torch.Generator().manual_seed(seed)
    x = torch.randn(B, config.d_in, generator=generator, dtype=torch.float64)
    y = torch.randn(B, config.d_out, generator=generator, dtype=torch.float64)
    weights = torch.rand(B, generator=generator, dtype=torch.float64) + 0.1
    is_dead = torch.zeros(F, dtype=torch.bool)
    is_dead[list(dead)] = True
    same = config.d_in == config.d_out
    return Rows(x, x if same else y, weights if weighted else torch.full_like(weights, 1 / B), is_dead)


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Equal but for the order of float64 additions."""
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
