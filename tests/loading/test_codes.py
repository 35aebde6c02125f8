"""Codes in every layout, compared with the dense tensor that they represent.

Shape letters: N sequences, T tokens, F latents.
"""

import pytest
import torch
from torch import Tensor

from panscope.loading.codes import Codes, concatenated, stacked
from panscope.types import UserError

F = 6


def plain(n: int, t: int, seed: int = 0) -> Tensor:
    """[N, T, F] with exactly two active latents per row."""
    g = torch.Generator().manual_seed(seed)
    scores, values = torch.rand(n, t, F, generator=g), torch.rand(n, t, F, generator=g) + 0.1
    return torch.where(scores >= scores.topk(2, dim=-1).values[..., -1:], values, torch.zeros(()))


def in_layout(tensor: Tensor, layout: str) -> Codes:
    rows = tensor.flatten(0, -2)
    leading = tuple(tensor.shape[:-1])
    if layout == "dense":
        return Codes(rows, F, None, None, leading)
    if layout == "even":
        values, indices = rows.topk(2, dim=1)
        return Codes(values, F, indices, None, leading)
    counts = (rows != 0).sum(dim=1)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    row, latent = rows.nonzero(as_tuple=True)
    return Codes(rows[row, latent], F, latent, starts, leading)


LAYOUTS = ("dense", "even", "ragged")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_layout(layout: str) -> None:
    tensor = plain(3, 5)
    codes = in_layout(tensor, layout)
    assert torch.equal(codes.tensor(), tensor)
    assert all(torch.equal(codes.of(latent), tensor[..., latent]) for latent in range(F))
    assert torch.equal(codes.columns(torch.tensor([4, 0])), tensor.flatten(0, 1)[:, [4, 0]])
    assert torch.equal(codes.with_values(codes.values * 2).tensor(), tensor * 2)
    assert torch.equal(codes.first_tokens(2).tensor(), tensor[:, :2])
    assert codes.first_tokens(5) is codes
    rows, latents, values = codes.entries()
    again = torch.zeros(15, F).index_put((rows, latents), values)
    assert torch.equal(again.view_as(tensor), tensor)
    assert len(values) == 2 * 15
    assert rows.tolist() == sorted(rows.tolist())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("latent", [-1, F, 999])
def test_a_latent_that_is_not_there(layout: str, latent: int) -> None:
    with pytest.raises(UserError, match=f"latent {latent} does not exist: the codes are of {F} latents"):
        in_layout(plain(3, 5), layout).of(latent)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_pass_gradients(layout: str) -> None:
    codes = in_layout(plain(2, 3), layout)
    values = codes.values.clone().requires_grad_()
    weights = torch.arange(6.0)
    (gradient,) = torch.autograd.grad((codes.with_values(values).of(2).flatten() * weights).sum(), [values])
    of_places = codes.with_values(gradient).tensor()
    if layout != "dense":  # a dense code of 0 is a place too
        weights = weights * (codes.of(2).flatten() != 0)
    assert torch.equal(of_places[..., 2].flatten(), weights)
    assert not of_places[..., [0, 1, 3, 4, 5]].any()


@pytest.mark.parametrize("layouts", [(one, two) for one in LAYOUTS for two in LAYOUTS])
def test_passes_and_sites_are_joined(layouts: tuple[str, str]) -> None:
    one, two = plain(3, 4, seed=1), plain(3, 2, seed=2)
    pieces = [in_layout(tensor, layout) for tensor, layout in zip((one, two), layouts, strict=True)]
    joined = concatenated(pieces)
    assert joined.leading == (3, 6)
    assert torch.equal(joined.tensor(), torch.cat([one, two], dim=1))
    assert concatenated(pieces[:1]) is pieces[0]
    same = [pieces[0], in_layout(plain(3, 4, seed=3), layouts[1])]
    both = stacked(same)
    assert both.leading == (2, 3, 4)
    assert torch.equal(both.tensor(), torch.stack([one, plain(3, 4, seed=3)]))


def test_no_rows_and_no_codes() -> None:
    nothing = torch.zeros(2, 0, F)
    for layout in ("dense", "ragged"):
        assert in_layout(nothing, layout).tensor().shape == (2, 0, F)
        assert in_layout(torch.zeros(2, 3, F), layout).of(1).shape == (2, 3)
    both = concatenated([in_layout(torch.zeros(2, 3, F), "ragged"), in_layout(plain(2, 1), "ragged")])
    assert torch.equal(both.tensor()[:, 3:], plain(2, 1))
