"""Entries above a floor on the CPU against exact float64 pre-activations.

Shape letters: B rows, D input width, F latents.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panscope.kernels.cpu import above as above_file  # the module: the package exports no function of that name
from panscope.kernels.cpu.threads import Threads
from tests.support.cpu_oracle import DTYPES, PROPERTY, Case, above, cases, check_above, draw, kernels


@given(cases(), st.floats(0, 1), st.integers(0, 99))
@PROPERTY
def test_against_exact_preactivations(case: Case, share: float, seed: int) -> None:
    """Both screens give the same bits, and correct ones: floors that few, many and all exceed."""
    finite = case.exact()[case.rounding().isfinite()]
    middle = float(finite.quantile(share)) if len(finite) else 0.0
    floor = (draw("normal", seed, len(case.W_enc)) * abs(middle) / 4 + middle).clamp(-3e38, 3e38)
    by_bfloat16, by_float32 = (above(kernels(dtype), case, floor) for dtype in DTYPES)
    check_above(by_bfloat16, case, floor)
    assert by_bfloat16 is not None
    assert by_float32 is not None
    assert by_bfloat16.values.equal(by_float32.values)
    assert by_bfloat16.latents.equal(by_float32.latents)
    assert by_bfloat16.starts.equal(by_float32.starts)


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_chunks_and_pieces(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads copy their entries in many pieces, of rows with about 50 entries each."""
    monkeypatch.setattr(above_file, "_BUFFERED_ENTRIES", 100)
    case = Case(draw("normal", 0, 307, 40), draw("normal", 1, 1001, 40), draw("normal", 2, 1001))
    floor = torch.full((1001,), 10.0)
    check_above(above(kernels(dtype, 2), case, floor), case, floor)


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_bfloat16_leaves_nearly_everything_open(dtype: torch.dtype) -> None:
    """A mean that is orthogonal to all latents but increases rounding: the chunk continues in float32, in row order."""
    W_enc = draw("normal", 1, 2000, 64)
    W_enc -= W_enc.mean(dim=1, keepdim=True)
    case = Case(draw("normal", 0, 64, 64) + 300, W_enc, torch.zeros(2000))
    floor = torch.full((2000,), 20.0)
    check_above(above(kernels(dtype), case, floor), case, floor)


@pytest.mark.parametrize("dtype", DTYPES)
def test_capacity(dtype: torch.dtype) -> None:
    """As many entries as the capacity are returned; one more returns None."""
    case = Case(draw("normal", 0, 90, 8), draw("normal", 1, 300, 8), torch.zeros(300))
    floor = torch.zeros(300)
    all_of_them = above(kernels(dtype, 2), case, floor)
    check_above(all_of_them, case, floor)
    assert all_of_them is not None
    count = len(all_of_them.values)
    exactly = above(kernels(dtype, 2), case, floor, count)
    assert exactly is not None
    assert len(exactly.values) == count
    assert above(kernels(dtype, 2), case, floor, count - 1) is None
    assert above(kernels(dtype, 2), case, floor, 0) is None
    assert above(kernels(dtype), case, torch.full((300,), 1e6), 0) is not None


def test_over_capacity_no_more_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the capacity is exceeded no further chunk is started: memory is limited for any number of rows."""
    tasks: list[int] = []
    run = Threads.run

    def watched(self: Threads, task: object, count: int) -> None:
        def counted(number: int) -> None:
            tasks.append(number)
            task(number)  # pyright: ignore[reportCallIssue]

        run(self, counted, count)

    case = Case(draw("normal", 0, 2000, 4), draw("normal", 1, 64, 4), torch.ones(64))
    monkeypatch.setattr(Threads, "run", watched)
    assert above(kernels(), case, torch.zeros(64), 10) is None
    assert tasks[-1] == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_floor_is_strict(dtype: torch.dtype) -> None:
    case = Case(torch.ones(2, 3), torch.ones(40, 3), torch.arange(40.0))
    found = above(kernels(dtype), case, torch.full((40,), 30.0))
    assert found is not None
    assert found.latents.tolist() == 2 * list(range(28, 40))
    assert found.values.tolist() == 2 * [float(3 + f) for f in range(28, 40)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_bad_numbers(dtype: torch.dtype) -> None:
    """NaN in a row, a latent or a floor is never above the floor; infinity is; other entries are not affected."""
    case = Case(draw("normal", 0, 5, 20), draw("normal", 1, 90, 20), draw("normal", 2, 90))
    x, W_enc, floor = case.x.clone(), case.W_enc.clone(), torch.ones(90)
    x[1, 3], x[3, 0] = torch.nan, torch.inf
    W_enc[8, 1], floor[9] = torch.nan, torch.nan
    found = above(kernels(dtype), Case(x, W_enc, case.b_enc), floor)
    assert found is not None
    rows = torch.arange(5).repeat_interleave(found.starts.diff())
    places = set(zip(rows.tolist(), found.latents.tolist(), strict=True))
    exact = case.exact()
    expected = {(b, f) for b in (0, 2, 4) for f in range(90) if exact[b, f] > 1 and f not in (8, 9)}
    expected |= {(3, f) for f in range(90) if W_enc[f, 0] > 0 and f not in (8, 9)}
    assert places == expected
    assert (found.values[rows == 3] == torch.inf).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_to_find(dtype: torch.dtype) -> None:
    """No rows; rows that are zero, above a floor of 0; latents that are zero."""
    W_enc, none = draw("normal", 0, 50, 3), torch.zeros(50)
    for x, weights in ((torch.zeros(0, 3), W_enc), (torch.zeros(4, 3), W_enc), (torch.ones(4, 3), torch.zeros(50, 3))):
        found = above(kernels(dtype), Case(x, weights, none), none)
        assert found is not None
        assert found.starts.tolist() == [0] * (len(x) + 1)
        assert len(found.values) == len(found.latents) == 0
