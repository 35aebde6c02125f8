"""Collection of activations: after any interruption the complete store has the same bytes as without one."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panscope.activations.shuffle import BucketShuffle
from panscope.activations.store.store import Store
from panscope.activations.store.writer import StoreWriter
from panscope.storage.locks import LOCK, locked
from panscope.types import ActivationBatch, UserError
from tests.support.store_maker import (
    BLOCK,
    MLP,
    RESID,
    WIDTHS,
    Boom,
    NumberedRows,
    make_store,
    manifest_of,
    model_identity,
    row_of,
    tree,
    write_store,
)

ROWS = 150  # two shards of four blocks, and one of 22 rows


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("stores") / "s"
    write_store(folder, ROWS)
    return tree(folder)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 63, 64, 65, 128, 150])
@pytest.mark.parametrize("wanted", [1, 16, 64, 100, 128, 1000])
def test_a_store_has_the_available_or_the_wanted_rows(tmp_path: Path, rows: int, wanted: int) -> None:
    """The text may end in the middle of a block, at the end of a shard or never."""
    store = make_store(tmp_path / "s", rows, wanted=wanted)
    number = torch.arange(min(rows, wanted))
    assert store.rows == len(number)
    for site, column in zip((RESID, MLP), store.columns([RESID, MLP]), strict=False):
        assert torch.equal(store.read(column, 0, store.rows), row_of(site, number, WIDTHS[site]))
    before = tree(tmp_path / "s")
    assert not StoreWriter(tmp_path / "s", manifest_of(wanted), WIDTHS).missing
    write_store(tmp_path / "s", rows, wanted=wanted)
    assert tree(tmp_path / "s") == before


@pytest.mark.parametrize("batches", range(11))
def test_collection_resumes_after_a_failure_of_the_source(
    tmp_path: Path, undisturbed: dict[str, bytes], batches: int
) -> None:
    folder = tmp_path / "s"
    if batches < 10:
        with pytest.raises(Boom):
            write_store(folder, ROWS, source=NumberedRows(ROWS, fail_after=batches))
        with pytest.raises(UserError, match="is not complete: run the panscope collect command again"):
            Store.open(folder)
    writer = StoreWriter(folder, manifest_of(ROWS), WIDTHS)
    assert writer.rows == (batches // 4 * 64 if batches < 10 else 0)
    progress: list[int] = []
    writer.write(NumberedRows(ROWS), progress.append)
    assert progress[0] == (batches // 4 * 64 if batches < 10 else 0)
    assert tree(folder) == undisturbed


@given(stops=st.lists(st.integers(0, 9), max_size=5))
@settings(deadline=None, max_examples=15)
def test_many_failures_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory, undisturbed: dict[str, bytes], stops: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("many") / "s"
    for stop in stops:
        try:
            write_store(folder, ROWS, source=NumberedRows(ROWS, fail_after=stop))
        except Boom:
            continue
    write_store(folder, ROWS)
    assert tree(folder) == undisturbed


def test_a_source_that_cannot_read_is_not_called_a_full_disk(tmp_path: Path) -> None:
    class Gone(NumberedRows):
        def __next__(self) -> ActivationBatch:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", "a.jsonl")

    with pytest.raises(UserError, match=r"the activations cannot be computed: .*'a\.jsonl'; fix this"):
        write_store(tmp_path / "s", ROWS, source=Gone(ROWS))


class _Killed(BaseException):
    """Simulates SIGKILL: nothing in the package catches it."""


def _count(monkeypatch: pytest.MonkeyPatch, name: str, *, fail_at: int, error: BaseException) -> list[int]:
    """Make the `fail_at`-th call of os.`name` fail; returns a counter of the calls."""
    calls, real = [0], getattr(os, name)

    def counted(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == fail_at:
            raise error
        return real(*arguments)

    monkeypatch.setattr(os, name, counted)
    return calls


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_collection_resumes_after_a_disk_failure(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The disk may turn out to be full only at a flush: no file may be left incomplete."""
    with monkeypatch.context() as patch:
        calls = _count(patch, name, fail_at=0, error=Boom())
        write_store(tmp_path / "count", ROWS)
    assert calls[0] >= 20
    for at in range(1, calls[0] + 1):
        folder = tmp_path / str(at)
        with monkeypatch.context() as patch:
            _count(patch, name, fail_at=at, error=OSError(errno.ENOSPC, "No space left on device"))
            with pytest.raises(
                UserError, match=r"cannot be written: the disk is full; free some space and run the same"
            ):
                write_store(folder, ROWS)
        write_store(folder, ROWS)
        assert tree(folder) == undisturbed


def test_a_kill_between_two_files_loses_nothing(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill no temporary file is removed at first; all are removed by the next run."""
    for at in range(1, 21):  # 18 files of three shards, and the manifest twice
        folder = tmp_path / str(at)
        with monkeypatch.context() as patch:
            _count(patch, "replace", fail_at=at, error=_Killed())
            patch.setattr(Path, "unlink", lambda *_, **__: None)
            with pytest.raises(_Killed):
                write_store(folder, ROWS)
        assert list(folder.rglob(".*.tmp"))
        if not (folder / "manifest.json").exists():
            for path in folder.rglob(".*.tmp"):  # another process of the same number would use the same name
                path.rename(path.with_name(".manifest.json.0.tmp"))
        write_store(folder, ROWS)
        assert tree(folder) == undisturbed


REPOSITORY = Path(__file__).parents[3]
_ON_A_SMALL_DISK = """
import subprocess, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from tests.support.store_maker import write_store
from panscope.types import UserError
disk = Path({disk!r})
try:
    write_store(disk / "s", {rows})
except UserError as error:
    print(error)
subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
write_store(disk / "s", {rows})
subprocess.run(["cp", "-r", str(disk / "s"), {out!r}], check=True)
"""


def test_collection_resumes_after_a_full_disk(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=32k none "$1" || exit 77; shift; exec "$@"'
    script = _ON_A_SMALL_DISK.format(here=str(REPOSITORY), disk=str(disk), rows=ROWS, out=str(out))
    command = ["unshare", "-rm", "sh", "-c", mount, "sh", str(disk), sys.executable, "-c", script]
    if shutil.which("unshare") is None:
        pytest.skip("a disk of its own needs unshare")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert f"the store {str(disk / 's')!r} cannot be written: the disk is full" in done.stdout
    assert tree(out) == undisturbed


def test_an_unwritable_folder_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = PermissionError(errno.EACCES, "Permission denied")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(error))
        with pytest.raises(UserError, match=r"/s' cannot be written: Permission denied; make the folder writable, or"):
            write_store(tmp_path / "s", ROWS)
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(UserError, match=r"cannot be written: .*Permission denied"):
            write_store(tmp_path / "t", ROWS)
        tmp_path.chmod(0o700)


def test_a_folder_with_other_files_is_not_changed(tmp_path: Path) -> None:
    file, folder, run = tmp_path / "file", tmp_path / "folder", tmp_path / "run"
    file.write_text("mine")
    (folder / "deep").mkdir(parents=True)
    run.mkdir()
    (run / "suite.toml").write_text("")
    before = tree(tmp_path)
    for place in (file, folder, run):
        with pytest.raises(UserError, match="exists and is not a store: choose another --out"):
            write_store(place, ROWS)
    with pytest.raises(UserError, match="cannot be written"):
        write_store(file / "below", ROWS)
    assert tree(tmp_path) == before


def test_a_manifest_that_is_a_folder_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(UserError, match=r"manifest\.json' cannot be read"):
        write_store(tmp_path, ROWS)


def test_an_empty_folder_or_one_with_a_lock_is_usable(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    with locked(tmp_path):
        write_store(tmp_path, ROWS)
    assert {name: data for name, data in tree(tmp_path).items() if name != LOCK} == undisturbed


def test_sites_that_are_added_later_get_the_same_rows(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    folder = tmp_path / "s"
    write_store(folder, ROWS, widths={RESID: 6})
    assert Store.open(folder).sites == (RESID,)
    writer = StoreWriter(folder, manifest_of(ROWS), WIDTHS)
    assert writer.missing == [MLP]
    with pytest.raises(Boom):
        writer.write(NumberedRows(ROWS, {MLP: 3}, fail_after=6))
    assert Store.open(folder).sites == (RESID,)
    write_store(folder, ROWS)
    assert tree(folder) == undisturbed


@pytest.mark.parametrize("name", ["00001.safetensors", "00001.json", "00000.json", "00002.safetensors"])
@pytest.mark.parametrize("column", ["tokens", "sites/L01.mlp_out"])
def test_a_file_that_was_deleted_is_collected_again(
    tmp_path: Path, undisturbed: dict[str, bytes], column: str, name: str
) -> None:
    folder = tmp_path / "s"
    write_store(folder, ROWS)
    (folder / column / name).unlink()
    missing = StoreWriter(folder, manifest_of(ROWS), WIDTHS).missing
    assert missing == ([MLP] if "mlp" in column else [RESID, MLP])
    write_store(folder, ROWS)
    assert tree(folder) == undisturbed


def test_other_text_is_refused_by_its_tokens(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    folder = tmp_path / "s"
    write_store(folder, ROWS, widths={RESID: 6})
    before = tree(folder)
    with pytest.raises(UserError, match=r"rows of shard 0 differ from those in the store .*/s': the text, the token"):
        StoreWriter(folder, manifest_of(ROWS), WIDTHS).write(NumberedRows(ROWS, {MLP: 3}, seed=1))
    assert tree(folder) == before
    write_store(folder, ROWS)
    assert tree(folder) == undisturbed


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dtype", {"dtype": "bfloat16"}),
        ("shard_rows", {"shard_rows": 128}),
        ("seed", {"seed": 3}),
        ("text", {"text": ("a.jsonl 3 bytes xxh3 other",)}),
        ("data.context", {"data": {"text": ["b.jsonl"], "context": 33}}),
        ("bucket_rows", {"bucket_rows": 128}),
    ],
)
def test_a_different_setting_of_an_existing_store_is_named(tmp_path: Path, name: str, change: dict[str, Any]) -> None:
    write_store(tmp_path / "s", ROWS)
    with pytest.raises(
        UserError, match=f"/s' was created with {name} = .* and now it is .*: use the same value, or collect"
    ):
        StoreWriter(tmp_path / "s", manifest_of(ROWS, **change), WIDTHS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": "other"}, r"its weights differ \(xxh3 abc, now other\)"),
        ({"configuration": {"rope_theta": 5}}, r"its configuration differs \(rope_theta 10000, now 5\)"),
        ({"tokenizer": "other"}, r"its tokenizer differs \(xxh3 def, now other\)"),
    ],
)
def test_another_model_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_store(tmp_path / "s", ROWS)
    other = manifest_of(ROWS, model_identity=model_identity(**change))
    with pytest.raises(UserError, match=f"/s' holds activations of another model .*: {words}; give that model, or"):
        StoreWriter(tmp_path / "s", other, WIDTHS)


def test_model_and_text_may_have_moved(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """Weights and text are compared by content, not by location."""
    write_store(tmp_path / "s", ROWS, widths={RESID: 6})
    data = manifest_of(ROWS).origin.data | {"text": ["moved/a.jsonl"]}
    moved = manifest_of(ROWS, model="moved", data=data)
    StoreWriter(tmp_path / "s", moved, WIDTHS).write(NumberedRows(ROWS, {MLP: 3}))
    assert tree(tmp_path / "s") == undisturbed


def test_another_version_may_resume(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    with pytest.raises(Boom):
        write_store(tmp_path / "s", ROWS, source=NumberedRows(ROWS, fail_after=6))
    newer = manifest_of(ROWS).replace(versions={"panscope": "1"})
    StoreWriter(tmp_path / "s", newer, WIDTHS).write(NumberedRows(ROWS))
    assert tree(tmp_path / "s") == undisturbed


def test_text_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.text: there is no row of activations to store"):
        write_store(tmp_path / "s", 0, wanted=100)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [17, 64, 1000])
def test_norms_are_means_over_all_stored_rows(tmp_path: Path, dtype: str, rows: int) -> None:
    store = make_store(tmp_path / "s", rows, dtype=dtype)
    for site, width in WIDTHS.items():
        x = row_of(site, torch.arange(rows), width).to(getattr(torch, dtype)).double()
        norms = store.norms(site)
        assert norms.rows == rows
        assert norms.mean_norm == pytest.approx(x.norm(dim=1).mean().item(), rel=1e-6)
        assert norms.mean_squared_norm == pytest.approx(x.square().sum(dim=1).mean().item(), rel=1e-6)
        assert norms.mean.dtype == torch.float64
        assert torch.allclose(norms.mean, x.mean(dim=0), rtol=0, atol=1e-6 * norms.mean_norm)


def test_norms_keep_their_digits_where_the_mean_is_large(tmp_path: Path) -> None:
    """As in a residual stream with one coordinate far from zero."""

    class Shifted(NumberedRows):
        def __next__(self) -> ActivationBatch:
            batch = super().__next__()
            return ActivationBatch(
                {site: x + 3000 for site, x in batch.rows.items()},
                batch.token_ids,
                batch.document_ids,
                batch.positions,
            )

    rows = 64 * BLOCK
    store = make_store(tmp_path / "s", rows, source=Shifted(rows))
    for site, width in WIDTHS.items():
        x = (row_of(site, torch.arange(rows), width) + 3000).double()
        norms = store.norms(site)
        assert norms.mean_norm == pytest.approx(x.norm(dim=1).mean().item(), rel=1e-6)
        assert torch.allclose(norms.mean, x.mean(dim=0), rtol=1e-6)


@given(
    rows=st.integers(1, 200),
    bucket=st.integers(16, 120),
    stop=st.integers(0, 12),
    wanted=st.integers(1, 220),
)
@settings(deadline=None, max_examples=40)
def test_a_shuffled_source_loses_no_row_and_can_be_resumed(
    tmp_path_factory: pytest.TempPathFactory, rows: int, bucket: int, stop: int, wanted: int
) -> None:
    def source(fail_after: int | None = None) -> BucketShuffle:
        whole = NumberedRows(rows, fail_after=fail_after)
        return BucketShuffle(whole, rows=bucket, batch=BLOCK, seed=3, keep_rest=True)

    folder = tmp_path_factory.mktemp("shuffled")
    StoreWriter(folder / "a", manifest_of(wanted), WIDTHS).write(source())
    try:
        StoreWriter(folder / "b", manifest_of(wanted), WIDTHS).write(source(fail_after=stop))
    except Boom:
        StoreWriter(folder / "b", manifest_of(wanted), WIDTHS).write(source())
    assert tree(folder / "a") == tree(folder / "b")
    store = Store.open(folder / "a")
    number = store.read(store.columns([])[0], 0, store.rows)[:, 0]
    assert store.rows == min(rows, wanted) == len(set(number.tolist()))
    if wanted >= rows:
        assert sorted(number.tolist()) == list(range(rows))
    assert torch.equal(store.read(store.columns([MLP])[0], 0, store.rows), row_of(MLP, number, 3))


@given(rows=st.integers(1, 200), bucket=st.integers(16, 120), batch=st.integers(1, 16), stop=st.integers(0, 40))
@settings(deadline=None, max_examples=60)
def test_a_shuffle_that_keeps_the_rest_gives_every_row(rows: int, bucket: int, batch: int, stop: int) -> None:
    def shuffle() -> BucketShuffle:
        return BucketShuffle(NumberedRows(rows), rows=bucket, batch=batch, seed=0, keep_rest=True)

    batches, states = [], []
    whole = shuffle()
    for found in whole:
        batches.append(found.token_ids.tolist())
        states.append(json.loads(json.dumps(whole.state_dict(), default=lambda x: x.tolist())))
    assert all(len(found) == batch for found in batches[:-1])
    assert sorted(token for found in batches for token in found) == list(range(rows))
    assert next(whole, None) is None
    stop = min(stop, len(states) - 1)
    fresh = shuffle()
    state = states[stop]
    state["start"]["source"]["rest"]["ids"] = torch.tensor(state["start"]["source"]["rest"]["ids"])
    fresh.load_state_dict(state)
    assert [found.token_ids.tolist() for found in fresh] == batches[stop + 1 :]


def test_the_order_of_the_given_sites_does_not_matter(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    write_store(tmp_path / "s", ROWS, widths=dict(reversed(WIDTHS.items())))
    assert tree(tmp_path / "s") == undisturbed
