"""Both shuffles: every row once, well mixed, bit-identical resumption, and constant memory."""

import json
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panscope.activations.live import LiveActivations
from panscope.activations.shuffle import SHUFFLES, BucketShuffle, PoolShuffle
from panscope.types import ActivationBatch, UserError
from tests.support.fake_lm import MLP, RESID, FakeLm, FakeTokens, all_tokens

KINDS = sorted(SHUFFLES)
Shuffle = BucketShuffle | PoolShuffle


def _shuffle(kind: str, documents: int | None, *, rows: int = 24, batch: int = 4, seed: int = 0) -> Shuffle:
    live = LiveActivations(FakeLm(), FakeTokens(documents), (RESID, MLP))
    return SHUFFLES[kind](live, rows=rows, batch=batch, seed=seed)


def _assert_same(a: list[ActivationBatch], b: list[ActivationBatch]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert list(x.rows) == list(y.rows)
        pairs = [(x.rows[site], y.rows[site]) for site in x.rows]
        pairs += [(x.token_ids, y.token_ids), (x.document_ids, y.document_ids), (x.positions, y.positions)]
        assert all(torch.equal(p, q) and p.dtype == q.dtype for p, q in pairs)


def _tokens(batches: list[ActivationBatch]) -> list[int]:
    return torch.cat([batch.token_ids for batch in batches]).tolist()


@pytest.mark.parametrize("kind", KINDS)
@given(documents=st.integers(0, 40).map(lambda n: 2 * n), rows=st.integers(4, 60), batch=st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_every_row_once_in_batches_of_one_size(kind: str, documents: int, rows: int, batch: int) -> None:
    shuffle = _shuffle(kind, documents, rows=rows, batch=batch)
    batches = list(shuffle)
    assert all(len(b) == batch and torch.isfinite(b.rows[RESID]).all() for b in batches)
    assert next(shuffle, None) is None
    source = all_tokens(documents)
    assert len(batches) == len(source) // batch
    found = _tokens(batches) if batches else []
    assert len(set(found)) == len(found)
    assert set(found) <= set(source)
    if batches:
        all_rows = ActivationBatch.concatenate(batches)
        tokens, positions = all_rows.token_ids, all_rows.positions
        assert torch.equal(all_rows.rows[RESID][:, 0], tokens.float())
        assert torch.equal(all_rows.rows[MLP], torch.stack([-tokens, 2 * positions], dim=1).float())
        assert torch.equal(all_rows.document_ids, tokens // 100)


def test_buckets_hold_consecutive_rows() -> None:
    found = _tokens(list(_shuffle("buckets", 80, rows=27, batch=4)))
    source = all_tokens(80)
    for first in range(0, len(found) - 24, 24):  # 27 rows are 6 whole batches
        assert sorted(found[first : first + 24]) == source[first : first + 24] != found[first : first + 24]


def test_the_pool_is_refilled_when_half_is_consumed() -> None:
    lm = FakeLm()
    shuffle = PoolShuffle(LiveActivations(lm, FakeTokens(None), (RESID,)), rows=24, batch=4, seed=0)
    taken, passes = [], []
    for batch in islice(shuffle, 12):
        taken += batch.token_ids.tolist()
        passes.append(lm.passes)
    source = all_tokens(200)
    for round_, seen in enumerate(passes[::3]):
        assert passes[3 * round_ : 3 * round_ + 3] == [seen] * 3
        reached = source[: 24 + 12 * round_]
        given = taken[: 12 * round_ + 12]
        assert set(given) <= set(reached)
    assert any(source.index(token) < 24 for token in taken[24:])  # a row may stay in the pool for several rounds


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_one_document_are_spread(kind: str) -> None:
    batches = list(islice(_shuffle(kind, None, rows=400, batch=40, seed=1), 10))
    apart = [len(set(batch.document_ids.tolist())) for batch in batches]
    assert min(apart) > 25  # 40 rows in source order are from about 11 documents


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_is_a_function_of_the_seed(kind: str) -> None:
    orders = [_tokens(list(_shuffle(kind, 40, seed=seed))) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    first, second = orders[0][:24], orders[0][24:48]
    assert [sorted(first).index(t) for t in first] != [sorted(second).index(t) for t in second]


@pytest.mark.parametrize("kind", KINDS)
@given(
    stops=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    rows=st.integers(4, 40),
    batch=st.integers(1, 4),
    documents=st.sampled_from([None, 30]),
    seed=st.integers(0, 3),
)
@settings(deadline=None, max_examples=80)
def test_a_resumed_shuffle_gives_the_same_batches(
    kind: str, stops: list[int], rows: int, batch: int, documents: int | None, seed: int
) -> None:
    def fresh() -> Shuffle:
        return _shuffle(kind, documents, rows=rows, batch=batch, seed=seed)

    expected = list(islice(fresh(), sum(stops) + 20))
    found: list[ActivationBatch] = []
    shuffle = fresh()
    for stop in stops:
        found += islice(shuffle, stop)
        state = shuffle.state_dict()
        list(islice(shuffle, 5))  # later batches must not change an earlier state
        shuffle = fresh()
        shuffle.load_state_dict(state)
        _assert_equal_states(shuffle.state_dict(), state)
    found += islice(shuffle, sum(stops) + 20 - len(found))
    _assert_same(found, expected)


def _assert_equal_states(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_equal_states(a[key], b[key])
    elif isinstance(a, Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def test_the_state_of_buckets_holds_no_rows_and_that_of_a_pool_its_unconsumed_ones() -> None:
    buckets, pool = _shuffle("buckets", None), _shuffle("pool", None)
    for shuffle in (buckets, pool):
        list(islice(shuffle, 8))
    assert len(json.dumps(buckets.state_dict())) < 300
    waiting = pool.state_dict()["waiting"]
    assert {name: len(column) for name, column in waiting.items()} == dict.fromkeys(
        [str(RESID), str(MLP), "token_ids", "document_ids", "positions"], 16
    )
    json.dumps({key: value for key, value in pool.state_dict().items() if key != "waiting"})


@pytest.mark.parametrize("kind", KINDS)
def test_the_buffer_is_allocated_once(kind: str) -> None:
    shuffle = _shuffle(kind, None)
    next(shuffle)
    columns = dict(shuffle._buffer._columns)
    addresses = {name: (x.data_ptr(), x.untyped_storage().nbytes()) for name, x in columns.items()}
    list(islice(shuffle, 100))
    after = shuffle._buffer._columns
    assert {name: (x.data_ptr(), x.untyped_storage().nbytes()) for name, x in after.items()} == addresses
    assert after[str(RESID)].shape == (24, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_inconsistent_sizes_are_refused(kind: str) -> None:
    with pytest.raises(UserError, match="buffer_rows is 3, fewer than one batch of 4 rows; set it to at least that"):
        _shuffle(kind, 8, rows=3)
    state = _shuffle(kind, 8, rows=8).state_dict()
    with pytest.raises(UserError, match="12 rows in batches of 4, but the checkpoint was written with 8 rows"):
        _shuffle(kind, 8, rows=12).load_state_dict(state)
