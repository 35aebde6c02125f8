"""The 95 % intervals: against formulas for known cases, against a bootstrap of sequences, and how often they hold.

Shape letters: S sequences, T tokens a sequence, B rows, E width, F latents, R repetitions.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from panscope.evals.firing import Firing
from panscope.evals.outcome import Losses, Outcome, Span, TokenIndex
from panscope.types import Latents
from tests.support.outcomes import an_outcome, moments_of

DOUBLE = torch.float64
Z = 1.959963984540054
E = 4


def half(interval: list[float]) -> float:
    return (interval[1] - interval[0]) / 2


def uneven(sequences: int, seed: int) -> Outcome:
    """Sequences of 1 to 12 tokens that differ in kind, so that tokens of one are alike; every token predicts.

    In expectation fvu = 0.01 + 0.04, l0 = 2, ce_clean = 2, ce_spliced = 2.1 and ce_zero_ablated = 4.
    """
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (sequences,), generator=g)
    of = torch.arange(sequences).repeat_interleave(lengths)
    rows = len(of)
    starts = lengths.cumsum(0) - lengths
    places = TokenIndex(of, torch.arange(rows) - starts[of], torch.zeros_like(of))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=DOUBLE)

    def skewed(tail: float) -> Tensor:
        """[B] of mean 1, partly the sequence's own."""
        own = torch.rand(sequences, generator=g, dtype=DOUBLE)
        return (0.5 - own.log() / 2)[of] * (1 - tail + tail * torch.rand(rows, generator=g, dtype=DOUBLE) * 2)

    scale = skewed(0.5).sqrt()[:, None]
    y = scale * normal(rows, E)
    harm = 0.1 * skewed(0.9)
    clean = 2 * skewed(0.8)
    values = _codes(g, of)
    return Outcome(
        span=Span(0, sequences, places, places),
        y=y,
        y_hat=0.9 * y + 0.2 * scale * normal(rows, E),
        centre=torch.zeros(E, dtype=DOUBLE),
        latents=Latents(values, values.shape[1]),
        ce_clean=clean,
        spliced=Losses(clean + harm, harm / 2, harm / 3),
        zero_ablated=Losses(clean + 2 * skewed(0.3), harm, harm),
        mean_ablated=Losses(clean + 1, harm, harm),
    )


def _codes(g: torch.Generator, of: Tensor) -> Tensor:
    """[B, 8] codes of which 2 a row are active in expectation, more in some sequences than in others."""
    chance = 0.5 * torch.rand(int(of.max()) + 1, generator=g)
    return (torch.rand(len(of), 8, generator=g) < chance[of][:, None]).float()


def ratios(outcome: Outcome) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Each number as a function of how often each sequence is drawn [R, S]: a ratio of sums over sequences."""
    n = outcome.span.sequences
    of = outcome.span.rows.sequences.numpy()

    def by_sequence(values: Tensor) -> np.ndarray:
        return np.bincount(of, weights=values.double().numpy(), minlength=n)

    def ratio(top: Tensor, bottom: Tensor) -> Callable[[np.ndarray], np.ndarray]:
        above, below = by_sequence(top), by_sequence(bottom)
        return lambda drawn: drawn @ above / (drawn @ below)

    y, y_hat, one = outcome.y, outcome.y_hat, torch.ones(len(outcome.y))
    clean, spliced, zero = outcome.ce_clean, outcome.spliced.ce, outcome.zero_ablated.ce
    error = (y - y_hat).square().sum(1)
    entry, square = by_sequence(y.sum(1)), by_sequence(y.square().sum(1))
    errors, entries = by_sequence(error), by_sequence(one * E)
    return {
        "l0": ratio((outcome.latents.dense() > 0).sum(1), one),
        "fvu": ratio(error, (y - outcome.centre).square().sum(1)),
        "mse": ratio(error, one * E),
        "relative_reconstruction_bias": ratio(y_hat.square().sum(1), (y * y_hat).sum(1)),
        "cosine": ratio((y * y_hat).sum(1) / y.norm(dim=1) / y_hat.norm(dim=1), one),
        "ce_spliced": ratio(spliced, one),
        "delta_loss": ratio(spliced - clean, one),
        "loss_recovered": ratio(zero - spliced, zero - clean),
        "kl": ratio(outcome.spliced.kl, one),
        "kl_reverse_per_sequence": lambda drawn: drawn @ by_sequence(outcome.spliced.kl_reverse) / drawn.sum(1),
        "fvu_scalar": lambda drawn: drawn @ errors / (drawn @ square - (drawn @ entry) ** 2 / (drawn @ entries)),
    }


def test_of_a_mean_over_equal_sequences_it_is_the_textbooks():
    """Then every sequence counts alike: mean +- 1.96 s / sqrt(n), with s the deviation of the sequences' means."""
    outcome = an_outcome(25, 6)
    means = outcome.spliced.ce.view(25, 5).mean(dim=1)
    found = moments_of([outcome]).intervals()["ce_spliced"]
    expected = Z * float(means.std()) / 5
    assert found == pytest.approx([float(means.mean()) - expected, float(means.mean()) + expected], rel=1e-12)


def test_of_a_ratio_it_is_the_one_of_survey_sampling():
    """Cochran's ratio estimator R of unequal clusters: n / (n - 1) sum (a_s - R b_s)^2 / (sum b)^2."""
    outcome = uneven(40, seed=1)
    of = outcome.span.rows.sequences
    a = torch.zeros(40, dtype=DOUBLE).index_add(0, of, (outcome.y - outcome.y_hat).square().sum(1))
    b = torch.zeros(40, dtype=DOUBLE).index_add(0, of, outcome.y.square().sum(1))
    ratio = float(a.sum() / b.sum())
    variance = float((a - ratio * b).square().sum() / b.sum() ** 2) * 40 / 39
    found = moments_of([outcome]).intervals()["fvu"]
    assert found == pytest.approx([ratio - Z * variance**0.5, ratio + Z * variance**0.5], rel=1e-10)


def test_it_shrinks_as_the_text_grows():
    """Of n sequences the loss is an average of 4 n even draws from 0 to 1.2, whose deviation is known."""
    for sequences in (100, 1600):
        found = moments_of([an_outcome(sequences, 5, seed=4)]).intervals()["ce_spliced"]
        assert half(found) == pytest.approx(Z * 1.2 / math.sqrt(12 * 4 * sequences), rel=0.15)


def test_it_agrees_with_a_bootstrap_of_sequences():
    outcome = uneven(400, seed=2)
    moments, drawn = moments_of([outcome]), np.random.default_rng(3).multinomial(400, [1 / 400] * 400, size=2000)
    numbers, intervals = moments.numbers(), moments.intervals()
    for name, of_draws in ratios(outcome).items():
        assert numbers[name] == pytest.approx(float(of_draws(np.ones((1, 400)))[0]), rel=1e-9), name
        # The deviation of 2,000 draws is known to 1.6 %.
        assert half(intervals[name]) == pytest.approx(Z * float(of_draws(drawn).std()), rel=0.06), name


def test_it_holds_in_95_of_100_cases():
    """500 evaluations of 300 sequences: from 92 to 98 % is within 3 deviations of a binomial.

    Of 30 such sequences, very unlike each other, it holds in 90 to 93 of 100 cases.
    """
    truth = {"fvu": 0.05, "delta_loss": 0.1, "loss_recovered": 0.95, "l0": 2.0, "ce_clean": 2.0}
    held = dict.fromkeys(truth, 0)
    for seed in range(500):
        intervals = moments_of([uneven(300, seed)]).intervals()
        for name, value in truth.items():
            low, high = intervals[name]
            held[name] += low <= value <= high
    assert all(460 <= count <= 490 for count in held.values()), held


def test_of_one_sequence_there_is_none():
    assert moments_of([an_outcome(1, 5)]).intervals() == {}


def fired(q: np.ndarray, sequences: int, rng: np.random.Generator) -> Firing:
    """Latents that fire independently, each with its chance q [F] on a sequence's one token."""
    firing = Firing(len(q))
    values = torch.from_numpy(rng.random((sequences, len(q))) < q).float()
    plain = an_outcome(sequences, 1)
    firing.update(replace(plain, latents=Latents(values, len(q))))
    return firing


CHANCES = {
    "spread over decades": lambda rng, width: 10 ** rng.uniform(-4, -0.3, width),
    "half never fire": lambda rng, width: np.where(rng.random(width) < 0.5, 0, 10 ** rng.uniform(-3, -0.3, width)),
    "all at the edge": lambda rng, width: np.full(width, 0.01),
}


@pytest.mark.parametrize("chances", CHANCES.values(), ids=list(CHANCES))
def test_the_interval_of_dead_holds_and_is_not_much_too_wide(chances: Callable[..., np.ndarray]):
    """It is about the share in another text as long: the mean over latents of (1 - q)^n."""
    rng, n, width = np.random.default_rng(5), 100, 600
    q = chances(rng, width)
    missed = (1 - q) ** n
    held, halves = 0, []
    for _ in range(300):
        low, high = fired(q, n, rng).intervals()["dead_fraction"]
        held += low <= missed.mean() <= high
        halves.append((high - low) / 2)
    assert held >= 278  # 3 deviations below 95 % of 300; the bound is on the safe side, so more is no fault
    assert np.mean(halves) <= 1.35 * Z * math.sqrt((missed * (1 - missed)).sum()) / width


def test_the_interval_of_dense_holds():
    """About the share in another text as long: the mean over latents of the chance of more than 10 firings in 100."""
    rng, n, width = np.random.default_rng(6), 100, 600
    q = 10 ** rng.uniform(-3, -0.2, width)
    rarely = [sum(math.comb(n, k) * chance**k * (1 - chance) ** (n - k) for k in range(11)) for chance in q]
    held = 0
    for _ in range(300):
        low, high = fired(q, n, rng).intervals()["dense_fraction"]
        held += low <= 1 - np.mean(rarely) <= high
    assert 273 <= held <= 297


def test_shares_stay_between_0_and_1():
    rng = np.random.default_rng(7)
    for low, high in fired(np.array([0.05, 0.1]), 20, rng).intervals().values():
        assert 0 <= low <= high <= 1
    assert fired(np.array([0.5]), 1, rng).intervals() == {}
