"""What weights say of latents, against loops over pairs of vectors.

Shape letters: F latents, D input width, E output width.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch

from panscope import coders
from panscope.evals.weights import weight_columns, weight_numbers


def a_coder(d_in: int, d_out: int, width: int = 12) -> Any:
    config = {"d_in": d_in, "d_out": d_out, "width": width, "sparsity": 1}
    coder: Any = coders.build(coders.config_type("relu").read(config | {"encoder_init": "own"}, "test"))
    coder.initialise(torch.Generator().manual_seed(8))
    with torch.no_grad():
        coder.W_enc.mul_(torch.linspace(0.1, 9, width)[:, None])
        coder.b_enc.copy_(torch.linspace(-1, 1, width))
    return coder


def cosine(u: np.ndarray, v: np.ndarray) -> float:
    return math.fsum(u * v) / (math.sqrt(math.fsum(u * u)) * math.sqrt(math.fsum(v * v)))


def largest(vectors: np.ndarray) -> list[float]:
    return [max(cosine(u, v) for m, v in enumerate(vectors) if m != n) for n, u in enumerate(vectors)]


@pytest.mark.parametrize("d_out", [5, 7])
def test_every_column_is_its_definition(d_out: int):
    coder = a_coder(5, d_out)
    W_enc, W_dec = (w.detach().double().numpy() for w in (coder.W_enc, coder.W_dec))
    columns = weight_columns(coder)
    own = [cosine(u, v) if d_out == 5 else math.nan for u, v in zip(W_enc, W_dec, strict=True)]
    expected = {
        "decoder_cosine": largest(W_dec),
        "encoder_cosine": largest(W_enc),
        "encoder_decoder_cosine": own,
        "encoder_norm": [math.sqrt(math.fsum(u * u)) for u in W_enc],
        "encoder_bias": torch.linspace(-1, 1, 12).tolist(),
    }
    assert columns.keys() == expected.keys()
    for name, values in expected.items():
        assert columns[name].tolist() == pytest.approx(values, abs=1e-12, nan_ok=True), name
    numbers = weight_numbers(columns)
    assert numbers == {
        name: pytest.approx(sum(expected[name]) / 12, abs=1e-12, nan_ok=True)
        for name in ("decoder_cosine", "encoder_cosine", "encoder_decoder_cosine")
    }


def test_one_latent_has_no_other_to_be_like():
    columns = weight_columns(a_coder(5, 5, width=1))
    assert math.isnan(columns["decoder_cosine"].item())
    assert not math.isnan(columns["encoder_decoder_cosine"].item())


def test_a_latent_without_direction_is_left_out_of_the_means():
    coder = a_coder(5, 5)
    with torch.no_grad():
        coder.W_dec[3].zero_()
    columns = weight_columns(coder)
    others = torch.arange(12) != 3
    for name in ("decoder_cosine", "encoder_decoder_cosine"):
        assert math.isnan(columns[name][3].item())
        assert weight_numbers(columns)[name] == pytest.approx(columns[name][others].mean().item(), abs=1e-12)
