"""Damaged stores: after any damage to one file, reading either names that file or returns the original rows.

The cases are seeded: every file of a small store is truncated, emptied, replaced, removed and so on, and the results of
reading and of `verify` are compared with the undamaged store.
"""

import errno
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panscope.activations.store.files import LocalFiles
from panscope.activations.store.layout import PAGE
from panscope.activations.store.store import Store
from panscope.activations.store.stored import StoredRows
from panscope.activations.store.verify import verify
from panscope.activations.store.windows import Windows
from panscope.storage.sealed import write_sealed
from panscope.types import UserError
from tests.support.store_maker import Boom, NumberedRows, make_store, tree, write_store

ROWS = 74
SHARD_ROWS = 32
COLUMNS = ("sites/L01.mlp_out", "sites/L03.resid_post", "tokens")
NAMES = [
    "manifest.json",
    *(f"{column}/{shard:05d}.{kind}" for column in COLUMNS for shard in range(3) for kind in ("json", "safetensors")),
]
Damage = Callable[[bytes], bytes | None]
"""Maps a file's bytes to the damaged ones; None removes the file."""


def _make(folder: Path, seed: int = 0) -> dict[str, bytes]:
    write_store(folder, ROWS, shard_rows=SHARD_ROWS, seed=seed)
    return tree(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("stores") / "s"
    assert sorted(_make(place)) == sorted(NAMES)
    return place


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A store of the same shape with other rows."""
    return _make(tmp_path_factory.mktemp("stores") / "other", seed=1)


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[Tensor]:
    return _everything(folder)


def _everything(folder: Path) -> list[Tensor]:
    """Every row of an epoch and every norm."""
    store = Store.open(folder)
    rows = StoredRows(store, store.sites, Windows(store.rows, 24, store.manifest.cut), batch=ROWS, seed=0)
    batch = next(rows)
    found = [*batch.rows.values(), batch.token_ids, batch.document_ids, batch.positions]
    for norms in map(store.norms, store.sites):
        found += [torch.tensor([norms.rows, norms.mean_norm, norms.mean_squared_norm]).double(), norms.mean]
    return found


@contextmanager
def _damaged(path: Path, damage: Damage) -> Iterator[bytes | None]:
    """Damage a file, and restore it afterwards."""
    whole = path.read_bytes()
    data = damage(whole)
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    try:
        yield data
    finally:
        path.unlink(missing_ok=True)
        path.write_bytes(whole)


def _is_harmless(name: str, whole: bytes, data: bytes | None) -> bool:
    """Whether the file has the same contents: JSON may be formatted in more than one way."""
    if data == whole:
        return True
    if data is None or not name.endswith(".json"):
        return False
    try:
        return json.dumps(json.loads(data.decode()), sort_keys=True) == json.dumps(json.loads(whole), sort_keys=True)
    except (ValueError, RecursionError):
        return False


def _check(folder: Path, name: str, damage: Damage, expected: list[Tensor]) -> None:
    """The oracle: reading names the file or returns the original rows, and `verify` names only this file."""
    whole = (folder / name).read_bytes()
    with _damaged(folder / name, damage) as data:
        harmless = _is_harmless(name, whole, data)
        try:
            found = _everything(folder)
        except UserError as error:
            assert not harmless
            _assert_names(str(error), folder, name)
        else:
            assert harmless, f"{name} was damaged and read"
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        messages = verify(LocalFiles(folder))
        if harmless:
            assert messages == []
        else:
            assert len(messages) == 1 or (messages and name == "manifest.json")  # with which every shard is compared
            for message in messages:
                _assert_names(message, folder, name)


def _assert_names(message: str, folder: Path, name: str) -> None:
    """The message is one line with the file's whole name, or with that of the shard and its own beside it."""
    path = folder / name
    beside = str(path.with_suffix(".safetensors")) in message and f"{path.name} beside it" in message
    compared = name == "manifest.json" and f"and according to {name} it must have" in message
    nothing = f"{str(folder)!r} is not a store: it has no {name}"
    assert str(path) in message or nothing in message or beside or compared, message
    assert "\n" not in message


def _flip(data: bytes, place: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    return bytes(changed)


def _seeded(name: str) -> list[random.Random]:
    return [random.Random(f"{name} {number}") for number in range(20)]


def _cut(random_: random.Random, data: bytes) -> bytes:
    return data[: random_.randrange(len(data))]


def _flipped(random_: random.Random, data: bytes) -> bytes:
    return _flip(data, random_.randrange(len(data)), random_.randrange(8))


def _flipped_rows(random_: random.Random, data: bytes) -> bytes:
    """Flip a bit in the rows of a shard, or in a digit of JSON."""
    digits = [place for place, byte in enumerate(data) if chr(byte).isdigit()]
    place = random_.choice(digits) if data[:1] == b"{" else random_.randrange(PAGE, len(data))
    return _flip(data, place, random_.randrange(3))


def _flipped_head(random_: random.Random, data: bytes) -> bytes:
    """Flip a bit in the header of a shard, or in the last bytes of JSON, where its checksum is."""
    place = len(data) - 1 - random_.randrange(28) if data[:1] == b"{" else random_.randrange(120)
    return _flip(data, place, random_.randrange(8))


def _grown(random_: random.Random, data: bytes) -> bytes:
    return data + random_.randbytes(random_.choice([1, 24, PAGE]))


def _moved(random_: random.Random, data: bytes) -> bytes:
    """Swap two pieces of 12 bytes."""
    first = random_.randrange(len(data) // 2 - 12)
    second = random_.randrange(len(data) // 2, len(data) - 12)
    a, b = data[first : first + 12], data[second : second + 12]
    return data[:first] + b + data[first + 12 : second] + a + data[second + 12 :]


def _zeros(random_: random.Random, data: bytes) -> bytes:
    """Zeros, as after a crash in a file that was not flushed."""
    first = random_.randrange(len(data) - 1)
    return data[:first] + bytes(min(512, len(data) - first)) + data[first + 512 :]


SEEDED = [_cut, _flipped, _flipped_rows, _flipped_head]


@pytest.mark.parametrize("damage", SEEDED, ids=lambda damage: damage.__name__[1:])
@pytest.mark.parametrize("name", NAMES)
def test_a_cut_or_flipped_file(
    folder: Path, expected: list[Tensor], name: str, damage: Callable[[random.Random, bytes], bytes]
) -> None:
    """19 files with 4 kinds of damage at 20 places each."""
    for random_ in _seeded(name):
        _check(folder, name, partial(damage, random_), expected)


@pytest.mark.parametrize("damage", [_grown, _moved, _zeros], ids=lambda damage: damage.__name__[1:])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_with_bytes_added_moved_or_zeroed(
    folder: Path, expected: list[Tensor], name: str, damage: Callable[[random.Random, bytes], bytes]
) -> None:
    for random_ in _seeded(name)[:4]:
        _check(folder, name, partial(damage, random_), expected)


def _sealed(tmp_path: Path, value: dict[str, object]) -> bytes:
    write_sealed(tmp_path / "sealed.json", value)
    return (tmp_path / "sealed.json").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_missing_or_replaced(
    folder: Path, other: dict[str, bytes], expected: list[Tensor], name: str, tmp_path: Path
) -> None:
    """Replace each file by each of the others, and by the same file of another store."""
    noise = random.Random(name)
    contents = [
        None,
        b"",
        b"\0",
        noise.randbytes(100),
        noise.randbytes(5000),
        bytes(len(other[name])),
        b"{}",
        b"[]",
        b"null",
        b"3",
        b'"text"',
        b"[" * 100_000,
        b"9" * 5000,
        "\ufeff{}".encode(),
        b'{"seal": "0"}',
        _sealed(tmp_path, {}),
        _sealed(tmp_path, {"rows": 32, "format": 1}),
        other[name],
        *((folder / another).read_bytes() for another in NAMES),
    ]
    for content in contents:
        _check(folder, name, lambda _, content=content: content, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_in_place_of_a_file(folder: Path, name: str, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "s")
    (tmp_path / "s" / name).unlink()
    (tmp_path / "s" / name).mkdir()
    with pytest.raises(UserError) as raised:
        _everything(tmp_path / "s")
    _assert_names(str(raised.value), tmp_path / "s", name)
    (message,) = verify(LocalFiles(tmp_path / "s"))
    _assert_names(message, tmp_path / "s", name)


@given(
    name=st.sampled_from(NAMES),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=6), st.integers(0, 6)), max_size=4),
)
@settings(deadline=None, max_examples=300)
def test_any_edit(folder: Path, expected: list[Tensor], name: str, edits: list[tuple[float, bytes, int]]) -> None:
    """Remove and insert bytes anywhere."""

    def edited(data: bytes) -> bytes:
        for place, put_in, taken_out in edits:
            at = int(place * len(data))
            data = data[:at] + put_in + data[at + taken_out :]
        return data

    _check(folder, name, edited, expected)


@given(name=st.sampled_from(NAMES), content=st.one_of(st.binary(max_size=200), st.text(max_size=50).map(str.encode)))
@settings(deadline=None, max_examples=100)
def test_any_content(folder: Path, expected: list[Tensor], name: str, content: bytes) -> None:
    _check(folder, name, lambda _: content, expected)


def test_every_byte_of_the_header_matters(folder: Path, expected: list[Tensor]) -> None:
    """Flip one bit in every byte of a shard's header."""
    name = "tokens/00002.safetensors"
    length = len((folder / name).read_bytes()[:PAGE].rstrip())
    for place in range(length):
        _check(folder, name, lambda data, place=place: _flip(data, place, place % 8), expected)


def test_an_earlier_manifest_is_harmless_or_incomplete(folder: Path, tmp_path: Path) -> None:
    write_store(tmp_path / "few", ROWS, shard_rows=SHARD_ROWS, widths=dict.fromkeys(Store.open(folder).sites[:1], 3))
    few = (tmp_path / "few" / "manifest.json").read_bytes()
    with _damaged(folder / "manifest.json", lambda _: few):
        assert len(Store.open(folder).sites) == 1
        assert len(_everything(folder)) == 1 + 3 + 2
        assert verify(LocalFiles(folder)) == []
    with pytest.raises(Boom):
        write_store(tmp_path / "incomplete", ROWS, shard_rows=SHARD_ROWS, source=NumberedRows(ROWS, fail_after=0))
    incomplete = (tmp_path / "incomplete" / "manifest.json").read_bytes()
    with _damaged(folder / "manifest.json", lambda _: incomplete):
        with pytest.raises(UserError, match="is not complete"):
            Store.open(folder)
        (message,) = verify(LocalFiles(folder))
        assert "is not complete" in message


def test_files_of_two_stores_are_not_mixed(folder: Path, other: dict[str, bytes], tmp_path: Path) -> None:
    """A shard and its record from another store match each other, but not the manifest."""
    shutil.copytree(folder, tmp_path / "s")
    for kind in ("json", "safetensors"):
        name = f"sites/L01.mlp_out/00001.{kind}"
        (tmp_path / "s" / name).write_bytes(other[name])
    with pytest.raises(UserError, match=r"00001\.json' has .* take both from one copy of the store"):
        _everything(tmp_path / "s")
    (message,) = verify(LocalFiles(tmp_path / "s"))
    assert "00001.json" in message


@pytest.mark.parametrize("name", ["manifest.json", "tokens/00001.json", "tokens/00001.safetensors"])
@pytest.mark.parametrize("method", ["is_file", "open", "read_bytes"])
def test_an_unreadable_file_is_one_message(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, method: str
) -> None:
    real = getattr(Path, method)

    def refusing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == folder / name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *arguments, **options)

    if method == ("open" if name.endswith("json") else "read_bytes"):
        return
    monkeypatch.setattr(Path, method, refusing)
    for read in (_everything, lambda place: verify(LocalFiles(place))[0]):
        try:
            message = str(read(folder))
        except UserError as error:
            message = str(error)
        assert f"{str(folder / name)!r} cannot be read: Permission denied" in message


def test_a_collection_does_not_resume_from_damaged_files(tmp_path: Path) -> None:
    """A resumed collection verifies the files that it reads, the manifest and the records."""
    for name in ("manifest.json", "tokens/00001.json", "sites/L01.mlp_out/00000.json"):
        place = tmp_path / name.replace("/", "-")
        with pytest.raises(Boom):
            write_store(place, ROWS, shard_rows=SHARD_ROWS, source=NumberedRows(ROWS, fail_after=4))
        data = (place / name).read_bytes()
        (place / name).write_bytes(_flip(data, len(data) // 2, 0))
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            write_store(place, ROWS, shard_rows=SHARD_ROWS)
        (place / name).write_bytes(data)
        assert make_store(place, ROWS, shard_rows=SHARD_ROWS).rows == ROWS
