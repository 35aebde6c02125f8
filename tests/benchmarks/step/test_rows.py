"""The rows of `benchmarks.step.race`, and the start that puts as many latents at work as are asked for."""

import pytest
import torch

from benchmarks.step.case import Case
from benchmarks.step.panscope_step import build
from benchmarks.step.rows import make_rows
from benchmarks.step.start import start, threshold

CASE = Case("jumprelu", rows=512, d=32, width=256, active=10)


def test_rows_are_like_activations() -> None:
    batches = make_rows(CASE)
    assert [rows.shape for rows in batches] == [(512, 32)] * 8
    assert {rows.dtype for rows in batches} == {torch.float32}
    assert all((rows != 0).all() for rows in batches)
    assert not torch.equal(batches[0], batches[1])
    every = torch.cat(batches)
    # Three parts in proportion 0.6, 0.3, 0.1; how far each draw is from its mean square is up to chance.
    assert every.square().mean().item() == pytest.approx(1, abs=0.1)
    assert every.mean(dim=0).square().mean().item() > 0.2


def test_rows_are_the_same_in_every_process() -> None:
    for one, other in zip(make_rows(CASE), make_rows(CASE), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("active", [1, 10, 255])
def test_as_many_are_above_the_threshold(active: int) -> None:
    pre = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    assert (pre > threshold(pre, active)).sum() == active * 64


def test_a_start_is_about_the_mean() -> None:
    """On rows it did not look at: the threshold is from a sample."""
    batches = make_rows(CASE)
    W_enc = torch.randn(256, 32, generator=torch.Generator().manual_seed(1))
    begin = start(CASE, batches, W_enc)
    assert torch.allclose(begin.mean, torch.cat(batches).mean(dim=0), atol=1e-6)
    active = ((torch.cat(batches) - begin.mean) @ W_enc.T > begin.threshold).sum(dim=1).double().mean().item()
    assert active == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "relu"])
def test_panscope_steps_at_the_l0_of_the_case(architecture: str) -> None:
    case = Case(architecture, rows=256, d=32, width=256, active=10)  # type: ignore[arg-type]
    batches = make_rows(case)
    contestant = build(case, "reference", batches)
    before = contestant.l0(batches[0])
    weights = [parameter.detach().clone() for parameter in contestant.parameters()]
    for rows in batches[:3]:
        contestant.step(rows)
    assert before == pytest.approx(10, rel=0.15)
    assert contestant.l0(batches[0]) == pytest.approx(before, rel=0.01)
    assert all(not torch.equal(a, b) for a, b in zip(weights, contestant.parameters(), strict=True))
    assert contestant.held_bytes() >= 3 * 4 * (2 * 256 * 32 + 256 + 32)
