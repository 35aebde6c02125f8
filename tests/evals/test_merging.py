"""Sums add: a text measured in parts, by several processes, in other batches or with a break gives the same results."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panscope.coders.wiring import WiredCoder
from panscope.evals import firing
from panscope.evals.accumulator import CoderShape, MetricAccumulator, Result
from panscope.evals.evaluate import Evaluation, batches_of, evaluate, measure_site_means
from panscope.evals.outcome import Losses, Outcome, Span, TokenIndex, Uniformity
from panscope.evals.spec import EvalShard, EvalSpec
from panscope.types import Site, TokenBatch
from tests.support.averaging_lm import (
    BOS,
    CONTEXT,
    EOS,
    MLP_IN,
    MLP_OUT,
    PAD,
    RESID0,
    RESID1,
    SEQUENCES,
    D,
    FakeLM,
    a_coder,
    built,
    in_batches,
    over,
)  # fmt: skip
from tests.support.definitions import differences
from tests.support.outcomes import an_outcome, tally_of

LONGER = [
    *SEQUENCES,
    [BOS, EOS, PAD, PAD, PAD, PAD, PAD],
    [BOS, 5, 5, EOS, BOS, 9, 3],
    [3, 4, 6, 8, 10, 7, 5],
    [BOS, 3, 8, 6, 4, 4, 9],
]
TOLERANCE = 1e-9
QUESTION = EvalSpec(
    subsets=("even", "odd"), subset_of=lambda document: document % 2, probes=7, interventions_per_pass=2, saebench=True
)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firing, "WINDOWS", (1, 5, 12, 31, 37, 38))


def coders() -> dict[str, WiredCoder]:
    """One of every wiring, dense and sparse codes."""
    return {
        "an sae": a_coder(RESID0, RESID0),
        "topk": a_coder(RESID0, RESID0, "topk"),
        "a transcoder": a_coder(MLP_IN, MLP_OUT, encoder_init="own"),
        "several layers": over("multilayer", [RESID0, RESID1], built("relu", D)),
        "a crosscoder": over("crosscoder", [MLP_OUT, RESID1], built("relu", 2 * D)),
    }


def evaluation(text: list[TokenBatch], question: EvalSpec = QUESTION) -> Evaluation:
    means = measure_site_means(FakeLM(), lambda: text, coders(), None)
    return Evaluation(FakeLM(), coders(), means, context=CONTEXT, spec=question)


def measure_share(text: list[TokenBatch], share: EvalShard) -> Evaluation:
    """What one of several processes does."""
    made = evaluation(text, replace(QUESTION, share=share))
    for batch, stand in batches_of(lambda: text, None):
        if stand.batches in share:
            made.measure(batch, stand)
    return made


def whole(text: list[TokenBatch], question: EvalSpec = QUESTION) -> dict[str, Result]:
    return evaluate(FakeLM(), lambda: text, coders(), context=CONTEXT, spec=question)


def plain(results: dict[str, Result]) -> dict[str, Any]:
    return {name: {"fields": one.fields, "tables": _lists(one.tables)} for name, one in results.items()}


def _lists(tables: Any) -> Any:
    return {kind: {name: list(column) for name, column in columns.items()} for kind, columns in tables.items()}


def same(found: dict[str, Result], expected: dict[str, Result]) -> None:
    assert not differences(plain(found), plain(expected), TOLERANCE)
    one = expected["several layers"]
    assert one.tables.keys() == {"latents", "positions", "layers"}
    assert one.fields["sites"]["L00.resid_post"]["intervals"]["uniformity"]
    assert set(expected["an sae"].fields["subsets"]) == {"even", "odd"}


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_shares_of_several_processes_merge_into_the_whole(parts: int, size: int):
    text = in_batches(LONGER, size)
    first, *others = (measure_share(text, EvalShard(number, parts)) for number in reversed(range(parts)))
    for other in others:
        first.merge(other)
    same(first.results(), whole(text))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_batches_may_be_of_any_size(size: int):
    """But for SAEBench's own definitions, some of which are means over batches."""
    question = replace(QUESTION, saebench=False)
    same(whole(in_batches(LONGER, size), question), whole(in_batches(LONGER, len(LONGER)), question))


@pytest.mark.parametrize("interventions_per_pass", [2, 8])
def test_passes_run_together_measure_what_they_do_alone(interventions_per_pass: int):
    text = in_batches(LONGER, 3)
    alone = whole(text, replace(QUESTION, interventions_per_pass=1))
    same(whole(text, replace(QUESTION, interventions_per_pass=interventions_per_pass)), alone)


def test_an_evaluation_goes_on_bit_for_bit_where_it_was_saved():
    text = in_batches(LONGER, 2)
    through, broken = evaluation(text), evaluation(text)
    state: dict[str, torch.Tensor] = {}
    before: dict[str, torch.Tensor] = {}
    for number, (batch, stand) in enumerate(batches_of(lambda: text, None)):
        through.measure(batch, stand)
        if number == 1:
            state = through.state_dict()
            before = {name: tensor.clone() for name, tensor in state.items()}
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items()), "it must not move on"
    broken.load_state_dict(state)
    for batch, stand in batches_of(lambda: text, None):
        if stand.batches > 1:
            broken.measure(batch, stand)
    assert broken.state_dict().keys() == through.state_dict().keys()
    for name, tensor in through.state_dict().items():
        assert torch.equal(broken.state_dict()[name], tensor), name
    assert json.dumps(plain(broken.results()), default=float) == json.dumps(plain(through.results()), default=float)


def test_the_state_before_the_first_batch_can_be_loaded():
    text = in_batches(LONGER, 4)
    made = evaluation(text)
    made.load_state_dict(evaluation(text).state_dict())
    for batch, stand in batches_of(lambda: text, None):
        made.measure(batch, stand)
    same(made.results(), whole(text))


def test_state_is_of_tensors_that_a_file_can_hold_and_does_not_grow_with_the_text():
    def shapes(text: list[TokenBatch]) -> dict[str, torch.Size]:
        made = evaluation(text)
        for batch, stand in batches_of(lambda: text, None):
            made.measure(batch, stand)
        state = made.state_dict()
        storages = {tensor.data_ptr() for tensor in state.values() if tensor.numel()}
        assert len(storages) == sum(bool(tensor.numel()) for tensor in state.values()), "no two share memory"
        return {name: tensor.shape for name, tensor in state.items()}

    assert shapes(in_batches(LONGER, 3)) == shapes(in_batches(LONGER * 4, 5))


def test_merging_leaves_the_other_as_it_was():
    text = in_batches(LONGER, 3)
    first, second = (measure_share(text, EvalShard(number, 2)) for number in range(2))
    before = second.state_dict()
    first.merge(second)
    first.merge(second)
    assert all(torch.equal(second.state_dict()[name], tensor) for name, tensor in before.items())


def test_sums_about_other_means_are_refused():
    one, other = evaluation(in_batches(LONGER, 3)), evaluation(in_batches(SEQUENCES, 3))
    with pytest.raises(AssertionError, match="of other text"):
        one.merge(other)


def cut(outcome: Outcome, first: int, last: int) -> Outcome:
    """The sequences from `first` to before `last`, as a batch of its own."""

    def some(places: TokenIndex) -> tuple[torch.Tensor, TokenIndex]:
        keep = (places.sequences >= first) & (places.sequences < last)
        return keep, TokenIndex(places.sequences[keep] - first, places.positions[keep], places.subsets[keep])

    rows, places = some(outcome.span.rows)
    ahead, predicted = some(outcome.span.predicted)

    def losses(of: Losses) -> Losses:
        return Losses(of.ce[ahead], of.kl[ahead], of.kl_reverse[ahead])

    before = outcome.span.first_row + int((outcome.span.rows.sequences < first).sum())
    probed, probes = some(outcome.uniformity.places) if outcome.uniformity else (None, None)
    return replace(
        outcome,
        span=Span(before, last - first, places, predicted),
        y=outcome.y[rows],
        y_hat=outcome.y_hat[rows],
        latents=outcome.latents.select(rows),
        ce_clean=outcome.ce_clean[ahead],
        spliced=losses(outcome.spliced),
        zero_ablated=losses(outcome.zero_ablated),
        mean_ablated=losses(outcome.mean_ablated),
        uniformity=Uniformity(outcome.uniformity.values[probed], probes) if outcome.uniformity and probes else None,
    )


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 8), min_size=3, max_size=3),
    order=st.permutations(range(4)),
    split=st.integers(0, 4),
)
def test_any_parts_in_any_order_merge_into_one_pass(cuts: list[int], order: list[int], split: int):
    outcome = an_outcome()
    probes = TokenIndex(torch.arange(8), torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=torch.int64))
    outcome = replace(outcome, uniformity=Uniformity(outcome.y[:8, 0].abs(), probes))
    ends = [0, *sorted(cuts), 8]
    pieces = [cut(outcome, *ends[n : n + 2]) for n in range(4)]
    shuffled = [pieces[n] for n in order]
    first, second = tally_of([an_outcome(0, 5), *shuffled[:split]]), tally_of([an_outcome(0, 5), *shuffled[split:]])
    first.merge(second)
    site, expected = Site(0, "resid_post"), tally_of([outcome])
    assert not differences(first.fields(), expected.fields(), TOLERANCE)
    assert not differences(first.positions(site), expected.positions(site), TOLERANCE)
    for name, column in expected.firing.table().items():
        assert torch.allclose(first.firing.table()[name], column, rtol=TOLERANCE, equal_nan=True), name


def test_a_fresh_tally_takes_in_another_and_leaves_it_alone():
    second = tally_of([an_outcome(seed=2)])
    before = second.fields()
    fresh = MetricAccumulator(CoderShape(64, ("",), saebench=False), len(second.firing.table()["firings"]))
    fresh.merge(second)
    assert not differences(fresh.fields(), before, 0)
    fresh.update(an_outcome(seed=3))
    assert not differences(second.fields(), before, 0)
