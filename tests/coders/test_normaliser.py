"""The six ways to bring activations to a common size, each against its definition in float64.

Shape letters: B rows, D width of a site.
"""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from panscope.coders.normaliser import PER_ROW, Kind, Normaliser, Part, scale_for
from panscope.types import Site, UserError

SITE = Site(2, "mlp_out")
FIXED: tuple[Kind, ...] = ("unit_rms", "sqrt_d", "rms_sqrt_d")
D = 7


def draw(count: int = 500, width: int = D) -> Tensor:
    """Rows of very different sizes, not about 0."""
    return torch.randn(count, width).double() * torch.rand(count, 1).double() * 30 + 2


def scale_of(kind: Kind, rows: Tensor) -> float:
    norms = rows.double().norm(dim=1)
    size = {"mean_norm": norms.mean().item(), "mean_squared_norm": norms.square().mean().item()}
    return scale_for(kind, SITE, d=rows.shape[1], **size)


def plain(kind: Kind) -> Normaliser:
    return Normaliser(kind=kind, scale_in=1, scale_out=1)


def test_the_six_kinds_are_all_there() -> None:
    assert set(get_args(Kind)) == {*FIXED, *PER_ROW, "none"}


def test_fixed_factors_give_rows_the_size_of_the_table() -> None:
    """Gemma Scope E|x|^2 = 1; Llama Scope E|x| = sqrt D; Scaling Monosemanticity E|x|^2 = D."""
    rows = draw()
    norms = {kind: (rows * scale_of(kind, rows)).norm(dim=1) for kind in FIXED}
    assert norms["unit_rms"].square().mean().item() == pytest.approx(1)
    assert norms["sqrt_d"].mean().item() == pytest.approx(math.sqrt(D))
    assert norms["rms_sqrt_d"].square().mean().item() == pytest.approx(D)
    assert scale_of("none", rows) == 1


@pytest.mark.parametrize("kind", PER_ROW)
def test_kinds_that_differ_from_row_to_row_need_no_factor(kind: Kind) -> None:
    assert scale_of(kind, torch.zeros(5, D)) == 1


@pytest.mark.parametrize("kind", FIXED)
def test_all_zero_rows_are_refused_with_the_site(kind: Kind) -> None:
    with pytest.raises(UserError, match=r"L02\.mlp_out.*all zero"):
        scale_of(kind, torch.zeros(5, D))


@pytest.mark.parametrize("kind", FIXED)
@pytest.mark.parametrize("size", [math.inf, math.nan])
def test_sizes_that_are_not_finite_are_not_called_zero(kind: Kind, size: float) -> None:
    with pytest.raises(UserError, match=r"L02\.mlp_out") as caught:
        scale_for(kind, SITE, d=D, mean_norm=size, mean_squared_norm=size)
    assert "all zero" not in str(caught.value)


@pytest.mark.parametrize("kind", [*FIXED, "none"])
def test_fixed_factors_multiply_input_and_target(kind: Kind) -> None:
    normaliser, x, y = Normaliser(kind=kind, scale_in=0.5, scale_out=4), draw(5), draw(5)
    inside, stats = normaliser.input(x)
    assert stats is None
    assert inside.equal(x * 0.5)
    assert normaliser.target(y, stats).equal(y * 4)
    assert normaliser.undo(y * 4, stats).equal(y)


def test_standardised_rows_have_mean_zero_and_deviation_one() -> None:
    """The deviation with D - 1, as the Multi-Layer SAE's and OpenAI's code, and their 1e-5."""
    x = draw()
    inside, stats = plain("standardise").input(x)
    assert stats is not None
    for row, found in list(zip(x.tolist(), inside.tolist(), strict=True))[:20]:
        mean = math.fsum(row) / D
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in row) / (D - 1))
        assert found == pytest.approx([(value - mean) / (deviation + 1e-5) for value in row], rel=1e-11, abs=1e-12)
    assert inside.mean(dim=1).abs().max() < 1e-12


def test_token_norm_brings_every_row_to_sqrt_d() -> None:
    x = draw()
    inside, stats = plain("token_norm").input(x)
    assert stats is not None
    assert torch.allclose(inside.norm(dim=1), torch.tensor(D, dtype=x.dtype).sqrt(), rtol=1e-12)
    assert torch.allclose(inside / inside.norm(dim=1, keepdim=True), x / x.norm(dim=1, keepdim=True), rtol=1e-12)


@pytest.mark.parametrize("kind", PER_ROW)
def test_per_row_kinds_are_undone_row_by_row(kind: Kind) -> None:
    normaliser, x, y = plain(kind), draw(9), draw(9, 4)
    inside, stats = normaliser.input(x)
    # Of a target too the input's figures are what is known: at inference there are no others.
    assert torch.allclose(normaliser.undo(normaliser.target(y, stats), stats), y, rtol=1e-12)
    size = x.std(dim=1, keepdim=True) if kind == "standardise" else x.norm(dim=1, keepdim=True) / math.sqrt(D)
    centre = x.mean(dim=1, keepdim=True) if kind == "standardise" else torch.zeros(())
    assert torch.allclose(normaliser.undo(inside, stats), inside * size + centre, rtol=1e-12)
    # What the tools that this is read from divide by, but do not undo: the whole of it shows in small rows.
    small, stats = normaliser.input(1e-4 * x)
    short = (1e-4 * size) / (1e-4 * size + 1e-5) if kind == "standardise" else 1.0
    assert torch.allclose(normaliser.undo(small, stats) - 1e-4 * centre, (x - centre) * 1e-4 * short, rtol=1e-9)


@pytest.mark.parametrize("kind", PER_ROW)
@pytest.mark.parametrize("value", [0.1, 1e-4, 3e7])
@pytest.mark.parametrize("width", [4, 8, 64, 100])
def test_rows_that_are_constant_but_for_rounding_have_small_targets(kind: Kind, value: float, width: int) -> None:
    """Their mean is not exactly their value, and the deviation of that is nothing to divide by."""
    x = torch.full((3, width), value)
    x[1, 0] *= 1 + 1e-7
    inside, stats = plain(kind).input(x)
    assert plain(kind).target(x, stats).abs().max() <= max(2.0 * width**0.5, float(inside.abs().max()))


@pytest.mark.parametrize("kind", PER_ROW)
def test_empty_and_constant_rows_stay_finite(kind: Kind) -> None:
    x = torch.stack([torch.zeros(D), torch.full((D,), 3.0)])
    inside, stats = plain(kind).input(x)
    assert inside.isfinite().all()
    assert torch.allclose(plain(kind).undo(inside, stats), x)
    assert torch.allclose(plain(kind).undo(plain(kind).target(x, stats), stats), x)


@pytest.mark.parametrize("kind", PER_ROW)
def test_one_row_does_not_depend_on_the_others(kind: Kind) -> None:
    x = draw(6)
    together, _ = plain(kind).input(x)
    for b in range(6):
        assert torch.allclose(plain(kind).input(x[b : b + 1])[0], together[b : b + 1], rtol=1e-14)


def test_parts_have_a_factor_each() -> None:
    parts = (Part(width=2, scale=10), Part(width=3, scale=0.5))
    normaliser, x = Normaliser(kind="unit_rms", scale_in=1, scale_out=1, parts=parts), draw(4, 5)
    inside, stats = normaliser.input(x)
    expected = torch.cat([x[:, :2] * 10, x[:, 2:] * 0.5], dim=1)
    assert stats is None
    assert inside.equal(expected)
    assert normaliser.target(x, stats).equal(expected)
    assert torch.allclose(normaliser.undo(expected, stats), x, rtol=1e-14)
    assert normaliser.input(x.float())[0].dtype == torch.float32


@pytest.mark.parametrize("kind", PER_ROW)
def test_parts_are_each_a_row_of_their_own(kind: Kind) -> None:
    parts = (Part(width=2, scale=1), Part(width=3, scale=1))
    normaliser, x = Normaliser(kind=kind, scale_in=1, scale_out=1, parts=parts), draw(4, 5)
    inside, stats = normaliser.input(x)
    expected = torch.cat([plain(kind).input(x[:, :2])[0], plain(kind).input(x[:, 2:])[0]], dim=1)
    assert torch.allclose(inside, expected, rtol=1e-14)
    apart = [plain(kind).target(piece, plain(kind).input(piece)[1]) for piece in (x[:, :2], x[:, 2:])]
    assert torch.allclose(normaliser.target(x, stats), torch.cat(apart, dim=1), rtol=1e-14)
    assert torch.allclose(normaliser.undo(normaliser.target(x, stats), stats), x, rtol=1e-12)


def test_what_is_left_after_folding() -> None:
    for kind in get_args(Kind):
        one = Normaliser(kind=kind, scale_in=1, scale_out=1)
        assert one.left_after_folding() == (one if kind in PER_ROW else plain("none"))


def test_factors_are_above_zero_and_say_one_thing() -> None:
    with pytest.raises(UserError, match="scale_in is 0"):
        Normaliser.read({"kind": "none", "scale_in": 0, "scale_out": 1}, "config.json")
    with pytest.raises(UserError, match="kind is 'rms'"):
        Normaliser.read({"kind": "rms", "scale_in": 1, "scale_out": 1}, "config.json")
    part = {"width": 2, "scale": 3}
    with pytest.raises(UserError, match="scale_in and scale_out must be 1 where parts have scales of their own"):
        Normaliser.read({"kind": "unit_rms", "scale_in": 2, "scale_out": 1, "parts": [part]}, "config.json")
    for wrong in ({"width": 0}, {"scale": -1}):
        with pytest.raises(UserError, match=r"parts\.0"):
            Normaliser.read({"kind": "unit_rms", "scale_in": 1, "scale_out": 1, "parts": [part | wrong]}, "config.json")


def test_a_normaliser_is_written_and_read_back() -> None:
    one = Normaliser(kind="unit_rms", scale_in=1, scale_out=1, parts=(Part(width=2, scale=3), Part(width=1, scale=4)))
    assert Normaliser.read(one.model_dump(mode="json"), "config.json") == one
