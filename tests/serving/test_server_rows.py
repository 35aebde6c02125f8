"""Every trainer receives every row of an epoch exactly once and bit-identical, for any number and speed of trainers."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from panscope.activations.store import windows as windows_module
from panscope.activations.store.store import Store
from panscope.types import ActivationBatch, UserError
from tests.support.served_store import (
    BLOCK,
    MLP,
    RESID,
    TIME_LIMIT,
    check_bits,
    check_once_an_epoch,
    make_store,
    numbers,
    serving,
    take,
    trainer,
)

ROWS = 330
"""Eleven windows in six shards; the last window has ten rows."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("stores") / "s", ROWS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_trainer_gets_every_row_once_an_epoch_bit_for_bit(dtype: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", ROWS, dtype)
    with serving(store) as served, trainer([served.address]) as source:
        batches = take(source, 3 * ROWS // 7)
        assert all(len(batch) == 7 for batch in batches)
        assert source.epoch == 2
    check_once_an_epoch(numbers(batches), range(ROWS))
    check_bits(store, batches)


def test_rows_are_shuffled_anew_in_every_epoch_by_the_seed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_module, "RUN", 1)  # The store is too small for runs of 16 to be mixed.

    def first_window(seed: int) -> list[list[int]]:
        with serving(store, windows=1, window_rows=ROWS) as served, trainer([served.address], seed=seed) as source:
            given = numbers(take(source, 2 * 48))
        return [[n for n in given[:64] if n < 64], [n for n in given[-64:] if n < 64]]

    once, again, other = first_window(0), first_window(0), first_window(1)
    assert once == again
    assert once[0] != sorted(once[0])
    assert once[0] != other[0]
    assert once[0][:10] != once[1][:10]


def test_only_the_sites_that_are_asked_for_are_sent(store: Store) -> None:
    with serving(store) as served, trainer([served.address], sites=(MLP,)) as source:
        batches = take(source, 20)
        assert set(batches[0].rows) == {MLP}
        check_bits(store, batches)
        assert served.service.health().bytes_served < served.service.health().rows_served * (3 * 2 + 24 + 1)


@pytest.mark.parametrize("trainers", [2, 4])
@pytest.mark.parametrize("windows", [1, 3])
def test_trainers_of_different_speeds_all_get_every_row_once(store: Store, trainers: int, windows: int) -> None:
    """Without a grace period lagging trainers miss windows, and receive them later."""
    turns = threading.Barrier(trainers, timeout=TIME_LIMIT)

    def train(address: str, number: int) -> list[ActivationBatch]:
        found = []
        with trainer([address], batch=3 + number, seed=number) as source:
            for _ in range(10):  # Trainers with higher numbers take more rows between two barriers.
                turns.wait()
                found += take(source, 2 + 5 * number)
            turns.wait()
            found += take(source, -(-2 * ROWS // (3 + number)) - len(found))
        return found

    with serving(store, windows=windows, grace=0.0) as served, ThreadPoolExecutor(trainers) as pool:
        futures = [pool.submit(train, served.address, number) for number in range(trainers)]
        for future in futures:
            batches = future.result(TIME_LIMIT)
            check_once_an_epoch(numbers(batches), range(ROWS))
            check_bits(store, batches)


def test_one_read_serves_all_that_keep_up(store: Store) -> None:
    """For trainers that keep pace each window is read once, even if not all windows fit into memory."""
    turns = threading.Barrier(3, timeout=TIME_LIMIT)

    def train(address: str) -> None:
        with trainer([address], batch=BLOCK) as source:
            for _ in range(ROWS // BLOCK):
                next(source)
                turns.wait()

    with serving(store, windows=6, grace=TIME_LIMIT) as served, ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(train, served.address) for _ in range(3)]:
            future.result(TIME_LIMIT)
        health = served.service.health()
    data = ROWS * (6 * 2 + 3 * 2 + 24)
    assert health.bytes_read <= 1.6 * data  # More than the data only by what is read ahead of the next epoch.
    assert health.bytes_served >= 3 * 0.9 * data


def test_nothing_is_read_while_no_trainer_is_there(store: Store) -> None:
    with serving(store) as served:
        with trainer([served.address]):
            pass
        assert served.service.health().bytes_read == 0


@pytest.mark.parametrize("given", [0, 1, 5, 13, 47, 48])
def test_a_trainer_resumes_in_the_middle_of_a_window(store: Store, given: int) -> None:
    with serving(store) as served:
        with trainer([served.address]) as source:
            before = take(source, given)
            state = json.loads(json.dumps(source.state_dict()))
            take(source, 3)
        with trainer([served.address]) as source:
            source.load_state_dict(state)
            after = take(source, 2 * ROWS // 7 - given)
            assert source.epoch == 1
    check_once_an_epoch(numbers([*before, *after]), range(ROWS))
    check_bits(store, after)


def test_a_started_source_can_be_reset_to_an_earlier_state(store: Store) -> None:
    with serving(store) as served, trainer([served.address]) as source:
        before = take(source, 4)
        state = source.state_dict()
        take(source, 9)
        source.load_state_dict(state)
        after = take(source, 2 * ROWS // 7 - 4)
    check_once_an_epoch(numbers([*before, *after]), range(ROWS))


def test_a_batch_that_is_interrupted_loses_no_row(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while waiting for a batch."""
    with serving(store) as served, trainer([served.address], batch=110) as source:
        before = take(source, 1)
        waiting, calls = source._wait_for_window, []

        def interrupted(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return waiting(*arguments)

        monkeypatch.setattr(source, "_wait_for_window", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(source)
        monkeypatch.undo()
        after = take(source, 2 * ROWS // 110 - 1)
    check_once_an_epoch(numbers([*before, *after]), range(ROWS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "seed = 5"),
        ({"identity": "other"}, "identity = 'other'"),
        (
            {"slices": {"0-160": {"windows": 5, "epoch": 0, "had": "00", "partial": {}, "last": 0}}},
            "same slices as before",
        ),
        ({"slices": {"0-330": {"windows": 5, "epoch": 0, "had": "00", "partial": {}, "last": 0}}}, "--window-rows"),
    ],
)
def test_a_state_of_something_else_is_refused(store: Store, change: dict[str, Any], message: str) -> None:
    with serving(store) as served, trainer([served.address]) as source, pytest.raises(UserError, match=message):
        source.load_state_dict(source.state_dict() | change)


def test_norms_and_manifest_are_the_stores(store: Store) -> None:
    with serving(store) as served, trainer([served.address], sites=(RESID,)) as source:
        assert source.manifest.origin == store.manifest.origin
        here, there = source.norms(RESID), store.norms(RESID)
        assert (here.rows, here.mean_norm, here.mean_squared_norm) == (ROWS, there.mean_norm, there.mean_squared_norm)
        assert here.mean.equal(there.mean)
