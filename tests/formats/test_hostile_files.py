"""Files from untrusted sources: reading gives a coder or a one-line error, without side effects.

Every entry of FORMATS is written, damaged and read, imported and exported: forged files in the place of each of its
files, each tensor spoilt, and over a hundred random changes of bytes and entries each. Meanwhile the process may take
250 MiB more address space and five seconds; a pickle's canary and what lies outside the folder are looked after. All of
it takes minutes; a sample is among the quick tests.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from panscope.formats import FORMATS, ImportedCoder
from tests.support.attacking import Original, assert_the_same, attacked, imported_again, written
from tests.support.hostile import STRUCTURAL, TENSORS, VALUES, holds_tensors, read_tensors, write_tensors
from tests.support.making import K, reconstruct, rows

EXAMPLES = 130
EVERY_KIND = ("saelens", "gemma_scope", "dictionary_learning")
"""Formats that have a safetensors, an npz, a .pt and a JSON file between them."""
OFTEN = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Original]]:
    """Every candidate that a format can represent, by format."""
    return written(tmp_path_factory.mktemp("valid"))


def assert_a_sound_coder(found: ImportedCoder, original: ImportedCoder) -> None:
    """Of the same sizes, with finite weights."""
    ours, wanted = found.wired.coder.tensors(), original.wired.coder.tensors()
    for tensor_name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert ours[tensor_name].shape == wanted[tensor_name].shape
    assert all(torch.isfinite(tensor).all() for tensor in ours.values())
    codes, _ = reconstruct(found, rows())
    assert not (codes < 0).any()


def test_every_format_is_attacked(originals: dict[str, list[Original]], tmp_path: Path) -> None:
    assert originals.keys() == FORMATS.keys()
    assert len(FORMATS) * EXAMPLES >= 500
    for name, found in originals.items():
        for original in found:
            imported = imported_again(name, original.folder, original.asked(), tmp_path / original.folder.name)
            assert imported is not None
            untouched = attacked(name, original, lambda folder, outside: None)
            assert untouched is not None
            assert_the_same(untouched, original.read)


@pytest.mark.parametrize("attack", STRUCTURAL)
def test_a_forged_file_of_every_kind_is_refused_or_changes_nothing(
    attack: str, originals: dict[str, list[Original]]
) -> None:
    for name in EVERY_KIND:
        forged(name, attack, originals)


@pytest.mark.soak
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("attack", STRUCTURAL)
def test_a_forged_file_is_refused_or_changes_nothing(
    name: str, attack: str, originals: dict[str, list[Original]]
) -> None:
    forged(name, attack, originals)


def forged(name: str, attack: str, originals: dict[str, list[Original]]) -> None:
    original, refused = originals[name][0], 0
    for file in original.files():
        found = attacked(name, original, lambda folder, outside, file=file: STRUCTURAL[attack](folder / file, outside))
        if found is None:
            refused += 1
        else:
            assert_the_same(found, original.read)
    assert refused, "no file of the format was missed"


@pytest.mark.soak
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("spoil", TENSORS)
def test_a_spoilt_tensor_is_refused_or_changes_nothing(
    name: str, spoil: str, originals: dict[str, list[Original]]
) -> None:
    for original in originals[name]:
        for file in filter(holds_tensors, original.files()):
            table = read_tensors(original.folder / file)
            for tensor_name in [key for key, value in table.items() if isinstance(value, torch.Tensor)]:

                def change(folder: Path, outside: Path, file: Path = file, key: str = tensor_name) -> None:
                    damaged = read_tensors(folder / file)
                    damaged[key] = TENSORS[spoil](damaged[key])
                    write_tensors(folder / file, damaged)

                found = attacked(name, original, change)
                if found is not None:
                    assert_the_same(found, original.read)
                    assert spoil == "float64" or not _weighs(tensor_name), tensor_name


def _weighs(tensor_name: str) -> bool:
    """Whether a tensor is part of the coder, and not a training statistic that is not read."""
    return tensor_name not in ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square", "sparsity")


@pytest.mark.soak
@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_or_unknown_tensor_is_refused(name: str, originals: dict[str, list[Original]]) -> None:
    for original in originals[name]:
        for file in filter(holds_tensors, original.files()):
            for key in read_tensors(original.folder / file):

                def rename(folder: Path, outside: Path, file: Path = file, key: str = key) -> None:
                    table = read_tensors(folder / file)
                    table["../" + key] = table.pop(key)
                    write_tensors(folder / file, table)

                found = attacked(name, original, rename)
                assert (
                    found is None
                    or not _weighs(key)
                    or not isinstance(read_tensors(original.folder / file)[key], torch.Tensor)
                ), key


@settings(OFTEN, max_examples=25)
@given(data=st.data())
def test_a_random_change_gives_a_sentence_or_a_sound_coder(
    originals: dict[str, list[Original]], data: st.DataObject
) -> None:
    changed(data.draw(st.sampled_from(sorted(FORMATS))), originals, data)


@pytest.mark.soak
@pytest.mark.parametrize("name", FORMATS)
@OFTEN
@given(data=st.data())
def test_random_changes_give_a_sentence_or_a_sound_coder(
    name: str, originals: dict[str, list[Original]], data: st.DataObject
) -> None:
    changed(name, originals, data)


def changed(name: str, originals: dict[str, list[Original]], data: st.DataObject) -> None:
    """A truncated or extended file gives the same coder or an error; flipped bytes may give other weights."""
    original = data.draw(st.sampled_from(originals[name]))
    kind = data.draw(st.sampled_from(["flip", "flip", "entry", "entry", "cut", "append", "swap", "repeat"]))
    files = [file for file in original.files() if kind != "entry" or file.suffix == ".json"]
    if not files:
        return
    file = data.draw(st.sampled_from(files))
    raw = (original.folder / file).read_bytes()

    def change(folder: Path, outside: Path) -> None:
        (folder / file).write_bytes(_changed(kind, raw, original, data))

    found = attacked(name, original, change)
    if found is None:
        return
    if kind in ("flip", "entry") or file.suffix == ".json":
        assert_a_sound_coder(found, original.read)
    else:
        assert_the_same(found, original.read)


def _changed(kind: str, raw: bytes, original: Original, data: st.DataObject) -> bytes:
    """The bytes of a file after one random change."""
    if kind == "cut":
        return raw[: data.draw(st.integers(0, len(raw) - 1))]
    if kind == "append":
        return raw + data.draw(st.binary(min_size=1, max_size=64))
    if kind == "swap":
        return (original.folder / data.draw(st.sampled_from(original.files()))).read_bytes()
    if kind == "repeat":
        return raw * 2
    if kind == "entry":
        return _other_entry(raw, data)
    changed = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        # Half of them among the first and the last 2,000 bytes, where headers and directories are.
        near = data.draw(st.sampled_from(["any", "any", "first", "last"]))
        span = len(raw) if near == "any" else min(len(raw), 2000)
        place = data.draw(st.integers(0, span - 1))
        changed[place if near != "last" else len(raw) - 1 - place] ^= data.draw(st.integers(1, 255))
    return bytes(changed)


def _other_entry(raw: bytes, data: st.DataObject) -> bytes:
    """A JSON table with one entry, at any depth, taken out or given another value."""
    table = json.loads(raw)
    place: Any = table
    while True:
        keys = list(range(len(place))) if isinstance(place, list) else sorted(place)
        if not keys:
            return json.dumps(VALUES[data.draw(st.integers(0, len(VALUES) - 1))]).encode()
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        if data.draw(st.integers(0, 4)):
            place[key] = data.draw(st.sampled_from(VALUES))
        else:
            del place[key]
        return json.dumps(table).encode()


def test_k_is_within_what_the_candidates_have() -> None:
    """The entries above hold a K that fits, so that some changes are read as another sound coder."""
    assert any(type(value) is int and 0 < value < K for value in VALUES)
