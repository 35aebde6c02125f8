"""TopK on the CPU against exact float64 scores.

Shape letters: B rows, D input width, F latents, K codes per row.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from panscope.kernels.backend import Screen
from panscope.kernels.cpu import CpuKernels, product
from panscope.kernels.cpu.arrays import Buffers
from panscope.kernels.cpu.product import Screened, ScreenQuery
from tests.support.cpu_oracle import DTYPES, PROPERTY, Case, cases, check_topk, draw, kernels, topk


@given(cases(), st.data(), st.booleans())
@PROPERTY
def test_against_exact_scores(case: Case, data: st.DataObject, weighted: bool) -> None:
    """Both screens give the same bits, and correct ones: K from 1 to F, norms that include zeros."""
    F = len(case.W_enc)
    k = data.draw(st.one_of(st.integers(1, F), st.sampled_from([1, F])))
    norms = torch.rand(F).mul(2).sub(0.2).relu() if weighted else None
    by_bfloat16, by_float32 = (topk(kernels(dtype), case, k, norms) for dtype in DTYPES)
    check_topk(by_bfloat16, case, k, norms)
    assert by_bfloat16[0].equal(by_float32[0])
    assert by_bfloat16[1].equal(by_float32[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_chunks_and_groups(dtype: torch.dtype) -> None:
    """A realistic width: more groups than K, several chunks, an incomplete last chunk and group."""
    case = Case(draw("normal", 0, 307, 65), draw("normal", 1, 3001, 65), draw("normal", 2, 3001))
    check_topk(topk(kernels(dtype, 2), case, 20), case, 20)
    norms = torch.rand(3001)
    check_topk(topk(kernels(dtype, 2), case, 20, norms), case, 20, norms)


def test_latents_that_bfloat16_cannot_tell_apart() -> None:
    """The rows of W_enc differ by less than bfloat16's resolution, and its products have the wrong order."""
    scales = 1 + torch.randperm(200) * 2.0**-13
    W_enc = draw("normal", 1, 1, 96) * scales[:, None]
    x = draw("normal", 3, 40, 96)
    x *= (x @ W_enc[0]).sign()[:, None]
    case = Case(x, W_enc, torch.zeros(200))
    kernel = kernels()
    rough = (kernel.rows(x, None).low @ kernel.screen(W_enc).low.T).argmax(dim=1)
    best = case.exact().argmax(dim=1)
    assert (rough != best).float().mean() > 0.8, "else this test shows nothing"
    for k in (1, 5):
        found = topk(kernel, case, k)
        check_topk(found, case, k)
        assert (found[1] == best[:, None]).any(dim=1).all()


def test_a_large_mean_takes_the_product_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """If bfloat16 leaves nearly all latents as candidates, the screen is recomputed in float32, and only then.

    No latent sees the mean that is added, but the rounding of bfloat16 does.
    """
    seen: list[torch.dtype] = []
    screen = product.screen

    def watched(query: ScreenQuery, first: int, end: int, buffers: Buffers) -> Screened:
        seen.append(query.screen.low.dtype)
        return screen(query, first, end, buffers)

    monkeypatch.setattr(product, "screen", watched)
    W_enc = draw("normal", 1, 2000, 64)
    W_enc -= W_enc.mean(dim=1, keepdim=True)
    case = Case(draw("normal", 0, 64, 64), W_enc, torch.zeros(2000))
    check_topk(topk(kernels(), case, 8), case, 8)
    assert set(seen) == {torch.bfloat16}
    seen.clear()
    far = Case(case.x + 300, case.W_enc, torch.zeros(2000))
    check_topk(topk(kernels(), far, 8), far, 8)
    assert set(seen) == {torch.bfloat16, torch.float32}


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_scores_fill_exactly_k_places_from_the_first_latent_on(dtype: torch.dtype) -> None:
    for F, k in ((100, 7), (100, 100), (40, 39), (1000, 3)):
        values, latents = topk(kernels(dtype), Case(torch.ones(3, 5), torch.ones(F, 5), torch.zeros(F)), k)
        assert (values == 5).all()
        assert latents.equal(torch.arange(k).expand(3, k))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_with_fewer_positive_than_k(dtype: torch.dtype) -> None:
    """None positive, two positive, all zero with and without a bias."""
    x, bias = torch.tensor([[-1.0], [1.0], [0.0]]), torch.zeros(50)
    W_enc = torch.zeros(50, 1)
    W_enc[[7, 31]] = torch.tensor([[2.0], [3.0]])
    values, latents = topk(kernels(dtype), Case(x, W_enc, bias), 4)
    assert values.tolist() == [[0, 0, 0, 0], [2, 3, 0, 0], [0, 0, 0, 0]]
    assert latents.tolist() == [[0, 0, 0, 0], [7, 31, 0, 0], [0, 0, 0, 0]]
    bias[45] = 0.5
    values, latents = topk(kernels(dtype), Case(x, W_enc, bias), 2)
    assert values.tolist() == [[0.5, 0], [2, 3], [0.5, 0]]
    assert latents.tolist() == [[45, 0], [7, 31], [45, 0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [40, 3000])
def test_bad_numbers_in_a_row_stay_there(dtype: torch.dtype, width: int) -> None:
    """A row with NaN has no codes. With infinity, +inf is selected, NaN never. Other rows are not affected."""
    case = Case(draw("normal", 0, 9, 33), draw("normal", 1, width, 33), draw("normal", 2, width))
    before = topk(kernels(dtype), case, 6)
    x = case.x.clone()
    x[2, 5] = torch.nan
    x[4, 0] = torch.inf
    x[7] = torch.inf
    values, latents = topk(kernels(dtype), Case(x, case.W_enc, case.b_enc), 6)
    others = [0, 1, 3, 5, 6, 8]
    assert values[others].equal(before[0][others])
    assert latents[others].equal(before[1][others])
    assert (values[2] == 0).all()
    assert (latents[2] == 0).all()
    assert values[4].tolist() == [torch.inf] * 6
    assert (case.W_enc[latents[4], 0] > 0).all()
    same_sign = (case.W_enc[latents[7]] > 0).all(dim=1) | (values[7] == 0)
    assert same_sign.all(), "inf - inf is NaN, which gets no place"


def test_a_latent_with_a_nan_gets_no_place_and_the_others_theirs() -> None:
    case = Case(draw("normal", 0, 5, 20), draw("normal", 1, 90, 20), torch.zeros(90))
    W_enc, b_enc = case.W_enc.clone(), case.b_enc.clone()
    W_enc[3, 2], W_enc[60, 0], b_enc[17] = torch.nan, torch.inf, torch.nan
    values, latents = topk(kernels(), Case(case.x, W_enc, b_enc), 80)
    assert not values.isnan().any()
    finite = [f for f in range(90) if f not in (3, 17, 60)]
    expected = Case(case.x, case.W_enc[finite], case.b_enc[finite]).exact()
    for b in range(5):
        kept = {f for f in latents[b][values[b] > 0].tolist() if f in finite}
        assert kept == {finite[n] for n in range(len(finite)) if expected[b, n] > 0}
    assert not (latents == 3).any()
    assert not (latents == 17).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_encoder_rows_and_zero_norms(dtype: torch.dtype) -> None:
    case = Case(draw("normal", 0, 6, 12), draw("normal", 1, 64, 12), torch.zeros(64))
    case.W_enc[::2] = 0
    check_topk(topk(kernels(dtype), case, 30), case, 30)
    norms = torch.ones(64)
    norms[1::4] = 0
    values, latents = topk(kernels(dtype), case, 64, norms)
    check_topk((values, latents), case, 64, norms)
    assert (latents[values > 0] % 4 == 3).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows(dtype: torch.dtype) -> None:
    values, latents = topk(kernels(dtype), Case(torch.zeros(0, 3), draw("normal", 0, 9, 3), torch.zeros(9)), 2)
    assert values.shape == latents.shape == (0, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_inputs_and_parameters(dtype: torch.dtype) -> None:
    """Transposed and strided tensors, and parameters that require gradients, are read correctly."""
    case = Case(draw("normal", 0, 11, 8), draw("normal", 1, 70, 8), draw("normal", 2, 70))
    expected = topk(kernels(dtype), case, 5)
    x = case.x.repeat_interleave(2, dim=1)[:, ::2]
    W_enc = torch.nn.Parameter(case.W_enc.T.contiguous().T)
    b_enc = torch.nn.Parameter(case.b_enc.repeat_interleave(2)[::2])
    assert not x.is_contiguous()
    assert not W_enc.is_contiguous()
    found = topk(kernels(dtype), Case(x, W_enc, b_enc), 5)
    assert found[0].equal(expected[0])
    assert found[1].equal(expected[1])


def test_an_old_screen_would_show(dtype: torch.dtype = torch.bfloat16) -> None:
    """A screen of other weights loses codes, so the tests above do test the screen."""
    case = Case(draw("normal", 0, 20, 30), draw("normal", 1, 500, 30), torch.zeros(500))
    kernel: CpuKernels = kernels(dtype)
    other: Screen = kernel.screen(draw("normal", 5, 500, 30))
    found: tuple[Tensor, Tensor] = kernel.topk(kernel.rows(case.x, None), case.W_enc, case.b_enc, other, 5, None)
    with pytest.raises(AssertionError):
        check_topk(found, case, 5)
