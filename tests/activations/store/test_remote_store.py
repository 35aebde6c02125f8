"""A store in an object store: the same rows as from a local folder, a bounded cache, and recovery from failures."""

import contextlib
import errno
import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import obstore
import pytest
import torch

from panscope.activations.store import remote
from panscope.activations.store.opening import open_store
from panscope.activations.store.remote import RemoteFiles
from panscope.activations.store.store import Store
from panscope.activations.store.stored import StoredRows
from panscope.activations.store.windows import Windows
from panscope.types import ActivationBatch, UserError
from tests.support.s3_standin import Fault, S3StandIn
from tests.support.store_maker import MLP, RESID, WIDTHS, make_store

ROWS, BATCH, WINDOW = 500, 10, 64
PREFIX = "team/store"
URL = f"s3://{S3StandIn.bucket}/{PREFIX}"
SHARD = "sites/L01.mlp_out/00002.safetensors"
SOON = timedelta(milliseconds=300)
"""Retry time of tests of permanent faults."""
PLENTY = 10**7


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("stores") / "s", ROWS)


@pytest.fixture
def s3(local: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3StandIn]:
    """The store's files in a stand-in for S3, and environment variables with its address."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with S3StandIn() as standin:
        standin.put_folder(PREFIX, Path(local.where))
        monkeypatch.setenv("AWS_ENDPOINT_URL", standin.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("GOOGLE_BASE_URL", standin.endpoint)
        monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
        yield standin


def _files(cache: Path, limit: int = PLENTY, url: str = URL, patience: timedelta = SOON) -> RemoteFiles:
    return RemoteFiles(url, cache, limit, patience=patience)


def _batches(store: Store, epochs: int = 2) -> Iterator[ActivationBatch]:
    rows = StoredRows(store, (RESID, MLP), Windows(ROWS, WINDOW, store.manifest.cut), batch=BATCH, seed=0)
    return islice(rows, epochs * ROWS // BATCH)


def _assert_same(found: ActivationBatch, expected: ActivationBatch) -> None:
    assert torch.equal(found.token_ids, expected.token_ids)
    assert torch.equal(found.document_ids, expected.document_ids)
    assert torch.equal(found.positions, expected.positions)
    assert all(torch.equal(found.rows[site], expected.rows[site]) for site in WIDTHS)


def _copies(cache: Path) -> dict[str, int]:
    """The sizes of all cached files, also unfinished ones, by their names in the store."""
    found = {}
    for path in cache.glob("panscope-*/**/*"):
        with contextlib.suppress(FileNotFoundError):  # A failed download may be removed at any time.
            if path.is_file():
                found["/".join(path.relative_to(cache).parts[1:])] = path.stat().st_size
    return found


def _bytes(cache: Path) -> int:
    """Total size of the cache, read while no file may be evicted or finished."""
    with (cache / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return sum(_copies(cache).values())


def _one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert "Debug" not in message
    return message


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_rows_match_the_local_store_and_the_cache_stays_within_its_limit(
    s3: S3StandIn, local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    whole = sum(len(value) for value in s3.objects.values())
    limit, most, fetch = whole // 3, [0], obstore.get_range

    def watched(*arguments: Any, **options: Any) -> Any:
        most.append(_bytes(tmp_path))
        return fetch(*arguments, **options)

    monkeypatch.setattr(remote, "RANGE", 1000)
    monkeypatch.setattr(obstore, "get_range", watched)
    store = Store(_files(tmp_path, limit, f"{scheme}://{S3StandIn.bucket}/{PREFIX}/"))
    for found, expected in zip(_batches(store), _batches(local), strict=True):
        _assert_same(found, expected)
        most.append(_bytes(tmp_path))
    assert limit // 2 < max(most) <= limit
    shards = len([key for key in s3.objects if key.endswith("safetensors")])
    assert s3.gets() > 6 * shards  # in ranges, and more than once because of evictions
    assert not [name for name in _copies(tmp_path) if name.endswith(".tmp")]


def test_cached_files_are_not_fetched_again(s3: S3StandIn, local: Store, tmp_path: Path) -> None:
    list(_batches(Store(_files(tmp_path))))
    keys = [key for key in s3.objects if key.startswith(PREFIX)]
    assert all(s3.requests["GET", key] == 1 for key in keys)
    for found, expected in zip(_batches(Store(_files(tmp_path))), _batches(local), strict=True):
        _assert_same(found, expected)
    assert s3.gets() == len(keys)


def test_a_file_is_fetched_in_ranges(s3: S3StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RANGE", 999)
    data = s3.objects[f"{PREFIX}/{SHARD}"]
    assert _files(tmp_path).path(SHARD).read_bytes() == data
    assert s3.gets(f"{PREFIX}/{SHARD}") == -(-len(data) // 999)


def test_files_are_fetched_ahead_in_the_background(s3: S3StandIn, tmp_path: Path) -> None:
    files = _files(tmp_path)
    names = [f"sites/L01.mlp_out/0000{n}.safetensors" for n in range(6)]
    s3.gate.clear()
    files.fetch_ahead(names)
    for _ in range(remote.FILES_AT_ONCE):
        assert s3.asked.acquire(timeout=20)
    s3.gate.set()
    for name in names:
        assert files.path(name).read_bytes() == s3.objects[f"{PREFIX}/{name}"]
        assert s3.gets(f"{PREFIX}/{name}") == 1


def test_queued_files_are_cancelled_by_the_next_call(s3: S3StandIn, tmp_path: Path) -> None:
    files = _files(tmp_path)
    s3.gate.clear()
    files.fetch_ahead([f"tokens/0000{n}.safetensors" for n in range(7)])
    for _ in range(remote.FILES_AT_ONCE):
        assert s3.asked.acquire(timeout=20)
    files.fetch_ahead([SHARD])
    s3.gate.set()
    files.path(SHARD)
    assert s3.gets(f"{PREFIX}/tokens") == remote.FILES_AT_ONCE


def test_two_readers_fetch_one_file_once(s3: S3StandIn, tmp_path: Path) -> None:
    readers = [_files(tmp_path), _files(tmp_path)]
    s3.gate.clear()
    for files in readers:
        files.fetch_ahead([SHARD])
    assert s3.asked.acquire(timeout=20)
    s3.gate.set()
    for files in readers:
        assert files.path(SHARD).read_bytes() == s3.objects[f"{PREFIX}/{SHARD}"]
    assert s3.gets(f"{PREFIX}/{SHARD}") == 1


def test_no_reader_waits_for_another_that_holds_a_file(s3: S3StandIn, tmp_path: Path) -> None:
    readers = [_files(tmp_path) for _ in range(3)]
    names = [key.removeprefix(f"{PREFIX}/") for key in s3.objects]
    for name in names:
        for files in readers:
            files.fetch_ahead([name])
        for files in readers:
            assert files.path(name).read_bytes() == s3.objects[f"{PREFIX}/{name}"]
    assert s3.gets() == len(names)


def test_readers_share_a_cache_that_is_too_small(s3: S3StandIn, local: Store, tmp_path: Path) -> None:
    """They evict each other's files all the time, and never one that another reader is about to open."""
    limit = sum(len(value) for value in s3.objects.values()) // 4
    expected = list(_batches(local))

    def read(reader: int) -> None:
        store = Store(RemoteFiles(URL, tmp_path, limit))
        for found, batch in zip(_batches(store), expected, strict=True):
            _assert_same(found, batch)
            assert _bytes(tmp_path) <= limit

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(read, range(3)))


_READ = """
import hashlib, sys
from itertools import islice
from pathlib import Path
from panscope.activations.store.opening import open_store
from panscope.activations.store.stored import StoredRows
from panscope.activations.store.windows import Windows
url, cache, limit, window, batch = sys.argv[1:]
store = open_store(url, cache=Path(cache), cache_bytes=int(limit))
windows = Windows(store.rows, int(window), store.manifest.cut)
rows = StoredRows(store, store.sites, windows, batch=int(batch), seed=0)
seen = hashlib.sha256()
for batch in islice(rows, 2 * store.rows // len(next(rows))):
    for site in store.sites:
        seen.update(batch.rows[site].numpy().tobytes())
print(seen.hexdigest())
"""


def test_two_processes_share_a_folder(s3: S3StandIn, local: Store, tmp_path: Path) -> None:
    limit = sum(len(value) for value in s3.objects.values()) // 3
    command = [sys.executable, "-c", _READ, URL, str(tmp_path), str(limit), str(WINDOW), str(BATCH)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    expected = hashlib.sha256()
    rows = StoredRows(local, local.sites, Windows(ROWS, WINDOW, local.manifest.cut), batch=BATCH, seed=0)
    next(rows)
    for batch in islice(rows, 2 * ROWS // BATCH):
        for site in local.sites:
            expected.update(batch.rows[site].numpy().tobytes())
    for process in processes:
        with process:
            assert process.communicate(timeout=120)[0].strip() == expected.hexdigest()
    assert _bytes(tmp_path) <= limit


def test_a_truncated_cached_file_is_fetched_again(s3: S3StandIn, tmp_path: Path) -> None:
    path = _files(tmp_path).path(SHARD)
    os.truncate(path, 100)
    assert _files(tmp_path).path(SHARD).read_bytes() == s3.objects[f"{PREFIX}/{SHARD}"]
    assert s3.gets(f"{PREFIX}/{SHARD}") == 2


def test_a_replaced_file_is_fetched_again(s3: S3StandIn, tmp_path: Path) -> None:
    old = _files(tmp_path).path(SHARD)
    changed = bytes(reversed(s3.objects[f"{PREFIX}/{SHARD}"]))
    s3.put(f"{PREFIX}/{SHARD}", changed)
    new = _files(tmp_path).path(SHARD)
    assert new == old
    assert new.read_bytes() == changed


def test_another_store_at_the_same_address_is_cached_separately(s3: S3StandIn, tmp_path: Path) -> None:
    old = _files(tmp_path).path(SHARD)
    s3.put(f"{PREFIX}/manifest.json", s3.objects[f"{PREFIX}/manifest.json"] + b"\n")
    assert _files(tmp_path).path(SHARD) != old


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_damage_is_found_and_its_file_named(s3: S3StandIn, tmp_path: Path, suffix: str) -> None:
    key = f"{PREFIX}/sites/L01.mlp_out/00002.{suffix}"
    data = bytearray(s3.objects[key])
    data[-3] ^= 1
    s3.put(key, bytes(data))
    with pytest.raises(UserError, match=f"L01.mlp_out/00002.{suffix}' is damaged"):
        list(_batches(Store(_files(tmp_path))))
    data[-3] ^= 1
    s3.put(key, bytes(data))
    list(_batches(Store(_files(tmp_path))))


def test_a_damaged_manifest_is_named(s3: S3StandIn, tmp_path: Path) -> None:
    s3.put(f"{PREFIX}/manifest.json", s3.objects[f"{PREFIX}/manifest.json"].replace(b"fake", b"mock"))
    with pytest.raises(UserError, match=r"manifest.json' is damaged"):
        Store(_files(tmp_path))


@pytest.mark.parametrize("faults", [("500",) * 4, ("dropped",) * 4, ("500", "dropped", "500")])
def test_temporary_faults_are_retried(s3: S3StandIn, tmp_path: Path, faults: tuple[Fault, ...]) -> None:
    s3.faults[f"{PREFIX}/{SHARD}"] = iter(faults)
    assert _files(tmp_path, patience=timedelta(seconds=20)).path(SHARD).read_bytes() == s3.objects[f"{PREFIX}/{SHARD}"]
    assert s3.gets(f"{PREFIX}/{SHARD}") == len(faults) + 1


@pytest.mark.parametrize("fault", ["500", "403", "dropped", "short"])
@pytest.mark.parametrize("ahead", [False, True])
def test_permanent_faults_are_one_message(
    s3: S3StandIn, tmp_path: Path, fault: Fault, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "RANGE", 1000)
    files = _files(tmp_path)
    s3.faults[f"{PREFIX}/{SHARD}"] = repeat(fault)
    if ahead:
        files.fetch_ahead([SHARD])
    with pytest.raises(UserError, match=rf"'{URL}/{SHARD}' cannot be read: .*check the address, the netw") as error:
        files.path(SHARD)
    assert "secret" not in _one_line(error)
    assert not _copies(tmp_path)
    s3.faults.clear()
    assert files.path(SHARD).read_bytes() == s3.objects[f"{PREFIX}/{SHARD}"]


def test_a_file_that_is_missing(s3: S3StandIn, tmp_path: Path) -> None:
    del s3.objects[f"{PREFIX}/{SHARD}"]
    with pytest.raises(UserError, match=f"the file '{URL}/{SHARD}' is missing: take a complete copy") as error:
        list(_batches(Store(_files(tmp_path))))
    _one_line(error)


@pytest.mark.parametrize("url", ["s3://other/team/store", "s3://bucket/team", "s3://bucket", "gs://bucket/no"])
def test_no_store_is_there(s3: S3StandIn, tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match=f"'{url}' is not a store: there is no such bucket, or no manifest") as error:
        open_store(url, cache=tmp_path, cache_bytes=PLENTY)
    _one_line(error)


def test_an_unreachable_service_is_one_message(s3: S3StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with S3StandIn() as gone:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gone.endpoint)
    with pytest.raises(UserError, match=rf"{URL}/manifest.json' cannot be read: .*\(Connection refused\)") as error:
        _files(tmp_path)
    _one_line(error)


def test_missing_credentials_are_one_message(s3: S3StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", s3.endpoint)
    with pytest.raises(UserError, match=rf"'{URL}/manifest.json' cannot be read: .*\(AWS_ACCESS_KEY_ID and") as error:
        _files(tmp_path)
    _one_line(error)


@pytest.mark.parametrize("place", ["ftp://host/store", "file:///tmp/store", "s3:///store", "s3://", "https://a/b"])
def test_invalid_addresses_are_refused(place: str) -> None:
    with pytest.raises(
        UserError, match=rf"{place}' is not a valid location: give a folder, or .*s3://bucket/prefix or gs:"
    ):
        open_store(place, cache=None, cache_bytes=PLENTY)


def test_the_cache_is_too_small_for_the_files_needed_at_once(s3: S3StandIn, tmp_path: Path) -> None:
    size = len(s3.objects[f"{PREFIX}/{SHARD}"])
    with pytest.raises(
        UserError, match=f"cache_gib allows {size - 1} bytes .* at once have {size}, in addition"
    ) as error:
        _files(tmp_path, size - 1).path(SHARD)
    _one_line(error)
    with pytest.raises(UserError, match=f"activations.cache_gib allows {3 * size - 1} bytes .*set it to .* or more"):
        list(_batches(Store(_files(tmp_path, 3 * size - 1))))
    assert not s3.gets(f"{PREFIX}/{SHARD}")


def test_a_cached_file_is_kept_until_its_reader_requests_the_next(s3: S3StandIn, tmp_path: Path) -> None:
    size = len(s3.objects[f"{PREFIX}/{SHARD}"])
    other = SHARD.replace("2.", "3.")
    reader, greedy = _files(tmp_path, size), _files(tmp_path, size)
    path = reader.path(SHARD)
    with pytest.raises(UserError, match=f"at once have {size}, in addition to those that other processes read"):
        greedy.path(other)
    assert path.read_bytes() == s3.objects[f"{PREFIX}/{SHARD}"]
    reader.fetch_ahead([])
    greedy.path(other)
    assert list(_copies(tmp_path)) == [other]


def test_the_least_recently_used_files_are_evicted(s3: S3StandIn, tmp_path: Path) -> None:
    names = [f"sites/L01.mlp_out/0000{n}.safetensors" for n in range(4)]
    files = _files(tmp_path, 3 * len(s3.objects[f"{PREFIX}/{SHARD}"]))
    for n in (0, 1, 2, 0, 3):
        files.path(names[n])
    assert sorted(_copies(tmp_path)) == [names[0], names[2], names[3]]


def test_files_of_a_killed_process_are_removed_and_no_others(s3: S3StandIn, tmp_path: Path) -> None:
    size = len(s3.objects[f"{PREFIX}/{SHARD}"])
    left = tmp_path / f"panscope-{'0' * 32}" / "sites" / ".00000.safetensors.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(size))
    others = [tmp_path / "thesis.tex", tmp_path / "panscope-runs" / "a" / "weights.safetensors"]
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(bytes(10 * size))
    _files(tmp_path, size).path(SHARD)
    assert not left.exists()
    assert all(other.exists() for other in others)


def test_an_interrupted_fetch_is_restarted(s3: S3StandIn, tmp_path: Path) -> None:
    path = _files(tmp_path).path(SHARD)
    path.rename(path.with_name(f".{path.name}.tmp"))
    os.truncate(path.with_name(f".{path.name}.tmp"), 10**6)
    assert _files(tmp_path).path(SHARD).read_bytes() == s3.objects[f"{PREFIX}/{SHARD}"]
    assert list(_copies(tmp_path)) == [SHARD]


def test_an_unusable_cache_folder_is_one_message(
    s3: S3StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file' cannot be used: Not a directory; or choose another activations.cache"):
        _files(tmp_path / "file").path(SHARD)

    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(
        UserError, match=f"cache folder '{tmp_path}/c' cannot be used: the disk is full; free some space"
    ):
        _files(tmp_path / "c").path(SHARD)
    assert not _copies(tmp_path / "c")


def test_a_folder_or_an_address_is_opened(
    s3: S3StandIn, local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert open_store(local.where, cache=None, cache_bytes=PLENTY).manifest == local.manifest
    assert not list(tmp_path.iterdir())
    assert open_store(f"{URL}/", cache=None, cache_bytes=PLENTY).manifest == local.manifest
    assert list(_copies(tmp_path / "panscope" / "stores")) == ["manifest.json"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_store(URL, cache=None, cache_bytes=PLENTY).where == URL
    assert _copies(tmp_path / "home" / ".cache" / "panscope" / "stores")
