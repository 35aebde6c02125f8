"""Files from untrusted sources: any defect gives a one-line error, without large allocations."""

import io
import json
import pickle
import resource
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from panscope.formats.untrusted import (
    inside,
    match_shapes,
    read_json,
    read_npz,
    read_pt,
    read_safetensors,
    safetensors_shapes,
)
from panscope.types import UserError
from tests.support.hostile import PAIRS_OF_PAIRS, TUPLE_OF_TUPLES

MATRIX = torch.arange(12.0).view(3, 4)
Reader = Callable[[Path], Any]


def refused(reader: Reader, path: Path, word: str) -> None:
    """Reading raises a one-line error containing `word`, using less than 20 MB, or 100 MB including torch."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=word) as error:
            reader(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert str(path.name) in str(error.value)
    assert "\n" not in str(error.value)


def safetensors_file(path: Path, header: Any, body: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + body)
    return path


def entry(shape: list[Any], end: int, dtype: str = "F32", start: int = 0) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_floating_point_comes_back_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": MATRIX.to(dtype), "n": torch.tensor([3])}, path, metadata={"made": "here"})
    found = read_safetensors(path)
    assert found["w"].equal(MATRIX)
    assert found["w"].dtype == torch.float32
    assert found["n"].dtype == torch.int64
    assert safetensors_shapes(path) == {"n": (1,), "w": (3, 4)}
    assert read_safetensors(path, lambda name: name == "n").keys() == {"n"}
    torch.save({"w": MATRIX.to(dtype), "inner": {"w": MATRIX.to(dtype)}, "k": 3, "list": [1]}, tmp_path / "x.pt")
    table = read_pt(tmp_path / "x.pt")
    assert table["w"].equal(MATRIX)
    assert table["inner"]["w"].equal(MATRIX)
    assert (table["k"], table["w"].dtype, "list" in table) == (3, torch.float32, False)


def test_what_is_read_outlives_the_file(tmp_path: Path) -> None:
    torch.save({"w": MATRIX}, tmp_path / "x.pt")
    save_file({"w": MATRIX}, tmp_path / "x.safetensors")
    found = [read_pt(tmp_path / "x.pt")["w"], read_safetensors(tmp_path / "x.safetensors")["w"]]
    for name in ("x.pt", "x.safetensors"):
        (tmp_path / name).write_bytes(b"\0" * (tmp_path / name).stat().st_size)
    assert all(tensor.equal(MATRIX) for tensor in found)


TERABYTES = 10**13


@pytest.mark.parametrize(
    ("header", "length", "word"),
    [
        (b"{}", TERABYTES, "claims"),
        (b"{}", 2**63, "claims"),
        (b"{", None, "not safetensors"),
        (b"[]", None, "not a JSON object"),
        (b"[" * 100_000, None, "not safetensors"),
        (b"\xff\xfe", None, "not safetensors"),
        ({"w": entry([TERABYTES], 4 * TERABYTES)}, None, "claims"),
        ({"w": entry([5], 16)}, None, "claims"),
        ({"w": entry([4], 32, start=16)}, None, "claims"),
        ({"w": entry([4], 16), "v": entry([4], 16)}, None, "overlap"),
        ({"w": entry([-4], -16)}, None, "no valid shape"),
        ({"w": entry([(1 << 64) - 1, 0], 0)}, None, "no valid shape"),
        ({"w": entry([True, 4], 16)}, None, "no valid shape"),
        ({"w": entry([4.0], 16)}, None, "no valid shape"),
        ({"w": entry([1] * 30 + [4], 16)}, None, "no valid shape"),
        ({"w": entry([4], 16, dtype="F4")}, None, "type"),
        ({"w": {"dtype": "F32"}}, None, "no valid shape"),
        ({"w": 3}, None, "type"),
        ({"w": entry([4], 16, dtype=["F32"])}, None, "type"),  # type: ignore[arg-type]
    ],
)
def test_a_safetensors_header_that_lies(header: Any, length: int | None, word: str, tmp_path: Path) -> None:
    refused(read_safetensors, safetensors_file(tmp_path / "x.safetensors", header, b"\0" * 16, length), word)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none(value: float, tmp_path: Path) -> None:
    bad = MATRIX.clone()
    bad[1, 2] = value
    save_file({"w": bad}, tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", w=bad.numpy())
    torch.save({"w": bad}, tmp_path / "x.pt")
    torch.save({"ae": {"w": bad}}, tmp_path / "y.pt")
    for reader, name in (
        (read_safetensors, "x.safetensors"),
        (read_npz, "x.npz"),
        (read_pt, "x.pt"),
        (read_pt, "y.pt"),
    ):
        refused(reader, tmp_path / name, "'w' contains NaN or infinity")


def test_float64_beyond_float32_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", w=np.array([1e300]))
    refused(read_npz, tmp_path / "x.npz", "NaN or infinity")


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i8", "|b1", ">i4", "<u2", "|u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_of_every_kind(dtype: str, order: Any, tmp_path: Path) -> None:
    array = np.asarray(np.arange(12).reshape(3, 4), dtype=dtype, order=order)
    np.savez(tmp_path / "x.npz", w=array)
    np.savez_compressed(tmp_path / "y.npz", w=array)
    for name in ("x.npz", "y.npz"):
        found = read_npz(tmp_path / name)["w"]
        assert found.tolist() == array.astype("<f8" if "f" in dtype else array.dtype).tolist()
        assert found.is_floating_point() == ("f" in dtype)


def npy(shape: str, body: bytes, descr: str = "'<f4'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, raw in members.items():
            file.writestr(zipfile.ZipInfo(name), raw, compression)
    return path


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ({"w.npy": npy("(10000000000000,)", b"\0" * 16)}, "claims shape"),
        ({"w.npy": npy("(5,)", b"\0" * 16)}, "claims shape"),
        ({"w.npy": npy("(-4,)", b"\0" * 16)}, "not npz|plain numbers"),
        ({"w.npy": npy("(2,)", b"\0" * 16, "'|O'")}, "plain numbers"),
        ({"w.npy": npy("(2,)", b"\0" * 16, "[('a', '<f4'), ('b', '<f4')]")}, "plain numbers"),
        ({"w.npy": npy("(__import__('os').getcwd(),)", b"\0" * 16)}, "no valid npy header"),
        ({"w.npy": b"nothing"}, "not npz"),
        ({"w.npy": b"\x93NUMPY\x03\x00" + b"\0" * 20}, "version"),
        ({"../../w.npy": npy("(4,)", b"\0" * 16)}, "is not an array"),
        ({"/etc/w.npy": npy("(4,)", b"\0" * 16)}, "is not an array"),
        ({"w.txt": b"x"}, "is not an array"),
    ],
)
def test_an_npz_that_lies(members: dict[str, bytes], word: str, tmp_path: Path) -> None:
    refused(read_npz, archive(tmp_path / "x.npz", members), word)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_an_npz_takes_no_second_copy_of_its_bytes(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", w=np.ones((1 << 12, 1 << 11), np.float32))
    tracemalloc.start()
    try:
        found = read_npz(tmp_path / "x.npz")["w"]
        assert tracemalloc.get_traced_memory()[1] < 1.25 * found.numel() * 4
    finally:
        tracemalloc.stop()
    assert found.eq(1).all()


def test_an_archive_whose_list_is_long_or_not_at_its_end_is_not_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", {f"{number}.npy": b"" for number in range(20_000)})
    refused(read_npz, path, "its central directory claims")
    archive(path, {"w.npy": npy("(4,)", b"\0" * 16)})
    assert read_npz(path)["w"].tolist() == [0] * 4
    raw = path.read_bytes()
    path.write_bytes(b"PK\3\4" + raw)
    refused(read_npz, path, "its central directory claims")
    with zipfile.ZipFile(path, "a") as file:
        file.comment = b"more"
    refused(read_npz, path, "something follows it")
    refused(read_npz, archive(path, {"w.npy": npy("(4,)", b"\0" * 16)}, zipfile.ZIP_LZMA), "numpy never uses")


def test_a_compressed_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    zeros = bytes(1 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("w.npy", "w", force_zip64=True) as member:
        for _ in range(400):
            member.write(zeros)
    assert path.stat().st_size < 1 << 20
    refused(read_npz, path, "claim")


class Evil:
    """Runs code when unpickled by an unsafe reader."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("was_here"),))


def pt_file(path: Path, data: bytes, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    return archive(path, {"archive/data.pkl": data, "archive/version": b"3\n", **members}, compression)


def tensor_pickle(numel: int, size: int, stride: int = 1) -> bytes:
    """What torch.save writes for {"w": a tensor}, with other numbers in it."""

    def number(value: int) -> bytes:
        return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)

    def word(text: bytes) -> bytes:
        return b"X" + struct.pack("<I", len(text)) + text

    storage = b"(" + word(b"storage") + b"ctorch\nFloatStorage\n" + word(b"0") + word(b"cpu") + number(numel) + b"tQ"
    shape = number(0) + b"(" + number(size) + b"t(" + number(stride) + b"t"
    arguments = b"(" + storage + shape + b"\x89ccollections\nOrderedDict\n)Rt"
    return b"\x80\x02}" + word(b"w") + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."


def test_the_pickle_of_these_tests_is_one_that_is_read(tmp_path: Path) -> None:
    path = pt_file(tmp_path / "x.pt", tensor_pickle(4, 4), {"archive/data/0": MATRIX.numpy().tobytes()[:16]})
    assert read_pt(path)["w"].tolist() == [0, 1, 2, 3]


def test_a_tensor_longer_than_its_numbers_never_shows_memory(tmp_path: Path) -> None:
    """It claims less than the file contains, and reads bytes of the file only."""
    numbers = MATRIX.numpy().tobytes()[:16]
    path = pt_file(tmp_path / "x.pt", tensor_pickle(40, 40), {"archive/data/0": numbers})
    raw = path.read_bytes()
    start = raw.index(numbers)
    assert read_pt(path)["w"].numpy().tobytes() == raw[start : start + 160]


def test_a_pickle_that_needs_code_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": MATRIX, "evil": Evil()}, "new.pt")
    torch.save({"w": MATRIX, "evil": Evil()}, "old.pt", _use_new_zipfile_serialization=False)
    Path("plain.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"w": MATRIX, "evil": Evil()}, "four.pt", pickle_protocol=4)
    for name in ("new.pt", "four.pt"):
        refused(read_pt, Path(name), "never runs code")
    for name in ("old.pt", "plain.pt"):
        refused(read_pt, Path(name), "never runs code from a file")
    assert not Path("was_here").exists()


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (tensor_pickle(TERABYTES, TERABYTES), "damaged|claims"),
        (tensor_pickle(4, TERABYTES), "damaged|claims"),
        (tensor_pickle(4, TERABYTES, 0), "claims"),
        (tensor_pickle(400, 400), "damaged|claims"),
        (tensor_pickle(4, -4), "damaged"),
        (b"\x80\x02cbuiltins\nbytearray\nI100000000000\n\x85R.", "bytearray"),
        (b"\x80\x02ctorch._utils\n_rebuild_sparse_tensor\n)R.", "rebuild_sparse"),
        (b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.", "posix.system"),
        (b"\x80\x02]q\x00.", "not contain a dict"),
        (b"\x80\x02" + b"]" * 200_000, "damaged"),
        (b"", "damaged"),
        (b"\x80\x02X\xff\xff\xff\x7fw.", "damaged"),
    ],
)
def test_a_pt_file_that_lies(data: bytes, word: str, tmp_path: Path) -> None:
    members = {"archive/data/0": b"\0" * 16, "archive/byteorder": b"little"}
    refused(read_pt, pt_file(tmp_path / "x.pt", data, members), word)


def test_a_compressed_pt_file_is_refused(tmp_path: Path) -> None:
    members = {"archive/data/0": bytes(1 << 20)}
    path = pt_file(tmp_path / "x.pt", tensor_pickle(4, 4), members, zipfile.ZIP_DEFLATED)
    refused(read_pt, path, "compressed")


def test_many_views_of_one_storage_are_not_copied_one_by_one(tmp_path: Path) -> None:
    whole = torch.randn(1000)
    torch.save({f"w{number}": whole.view(-1) for number in range(200)}, tmp_path / "x.pt")
    refused(read_pt, tmp_path / "x.pt", "claims")


def test_a_large_state_dict_and_a_tensor_under_two_names_are_read(tmp_path: Path) -> None:
    torch.save(
        {f"layers.{number}.self_attn.q_proj.weight": MATRIX.clone() for number in range(1000)}, tmp_path / "x.pt"
    )
    assert len(read_pt(tmp_path / "x.pt")) == 1000
    torch.save({"a": MATRIX, "b": MATRIX, "more": list(range(100))}, tmp_path / "x.pt")
    assert read_pt(tmp_path / "x.pt")["b"].equal(MATRIX)


def test_names_that_are_no_text_and_numbers_beyond_any(tmp_path: Path) -> None:
    torch.save({"w": MATRIX, 10**500: 1, "state": {0: MATRIX}}, tmp_path / "x.pt")
    assert read_pt(tmp_path / "x.pt").keys() == {"w", "state"}
    torch.save({"k": 1 << 70}, tmp_path / "x.pt")
    refused(read_pt, tmp_path / "x.pt", "integer of 71 bits")
    torch.save({"half": "\ud800"}, tmp_path / "x.pt")
    refused(read_pt, tmp_path / "x.pt", "surrogates not allowed")


@pytest.mark.parametrize(
    "opcodes",
    [
        b"}" * 1_000_000 + b".",
        b"}" + PAIRS_OF_PAIRS + b"K\x01s.",
        b"}" + TUPLE_OF_TUPLES + b"K\x01s.",
        PAIRS_OF_PAIRS + b")R.",
        b"]" * 250_000 + b".",
    ],
)
def test_a_pickle_of_more_objects_than_bytes_is_not_unpickled(opcodes: bytes, tmp_path: Path) -> None:
    refused(read_pt, pt_file(tmp_path / "x.pt", b"\x80\x02" + opcodes, {}), "creates too many objects")


def test_a_pickle_longer_than_any_list_of_tensors_is_not_read(tmp_path: Path) -> None:
    refused(read_pt, pt_file(tmp_path / "x.pt", b"\x80\x02" + b"}" * (2 << 20) + b".", {}), "one data.pkl of at most")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "not JSON"),
        ("[1]", "not contain a JSON object"),
        ("[" * 100_000, "not JSON"),
        ('{"a": ' + "9" * 10_000 + "}", "not JSON"),
        ('{"a"', "not JSON"),
        ('{"a":' * 51 + "1" + "}" * 51, "more than 50 deep"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        ('{"\\udfff": 1}', "surrogates not allowed"),
        ('{"a": 9223372036854775808}', "integer of 64 bits"),
    ],
)
def test_json_that_is_none(text: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    refused(read_json, tmp_path / "x.json", word)


def test_json_larger_than_any_configuration_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'{"a": "' + b" " * (17 << 20) + b'"}')
    refused(read_json, tmp_path / "x.json", "bytes of JSON")
    (tmp_path / "y.json").write_text('{"a": NaN, "b": Infinity, "c": 1e999, "d": [[-9223372036854775807]]}')
    assert read_json(tmp_path / "y.json") == {"a": None, "b": None, "c": None, "d": [[-9223372036854775807]]}


@pytest.mark.parametrize("reader", [read_json, read_npz, read_pt, read_safetensors])
def test_no_file_and_a_folder(reader: Reader, tmp_path: Path) -> None:
    refused(reader, tmp_path / "none", "is missing")
    (tmp_path / "folder").mkdir()
    refused(reader, tmp_path / "folder", "is not a regular file")


def whole_files() -> dict[str, tuple[Reader, bytes]]:
    """A valid file of each kind."""
    found: dict[str, tuple[Reader, bytes]] = {}
    buffer = io.BytesIO()
    np.savez(buffer, w=MATRIX.numpy(), b=np.ones(3, dtype="<f2"))
    found["x.npz"] = (read_npz, buffer.getvalue())
    buffer = io.BytesIO()
    torch.save({"w": MATRIX, "k": torch.tensor(3), "inner": {"b": MATRIX[0]}}, buffer)
    found["x.pt"] = (read_pt, buffer.getvalue())
    header = json.dumps({"w": entry([3, 4], 48)}).encode()
    found["x.safetensors"] = (read_safetensors, struct.pack("<Q", len(header)) + header + MATRIX.numpy().tobytes())
    return found


@pytest.mark.parametrize("name", ["x.npz", "x.pt", "x.safetensors"])
def test_a_file_cut_anywhere_is_a_sentence(name: str, tmp_path: Path) -> None:
    reader, raw = whole_files()[name]
    for length in [*range(0, len(raw), 7), len(raw) - 1]:
        (tmp_path / name).write_bytes(raw[:length])
        with pytest.raises(UserError, match=f"{name}.*take an undamaged copy"):
            reader(tmp_path / name)


@pytest.mark.parametrize("name", ["x.npz", "x.pt", "x.safetensors"])
@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_a_file_with_any_bytes_changed_is_read_or_is_a_sentence(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    reader, raw = whole_files()[name]
    changed = bytearray(raw)
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        changed[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(bytes(changed))
    try:
        found = reader(path)
    except UserError as error:
        assert name in str(error)
    else:
        numbers = sum(tensor.numel() for tensor in found.values() if isinstance(tensor, torch.Tensor))
        assert numbers <= len(raw)


def test_names_that_lead_out_of_the_folder(tmp_path: Path) -> None:
    assert inside(tmp_path, "a/b.safetensors") == tmp_path / "a" / "b.safetensors"
    for name in ("../x", "a/../../x", "/etc/passwd", "..\\x", "", "a\0b", 3, None):
        with pytest.raises(UserError, match="outside the folder"):
            inside(tmp_path, name)


def test_sizes_must_agree() -> None:
    tensors = {"w": torch.zeros(3, 4), "b": torch.zeros(4)}
    where = Path("file")
    assert match_shapes(where, tensors, {"w": "DF", "b": "F", "c": "D"}, optional="c") == {"D": 3, "F": 4}
    for dims, word in (
        ({"w": "DF", "b": "D"}, r"'b' has shape \(4,\), expected \(3\)"),
        ({"w": "DF", "b": "FF"}, "'b' has shape"),
        ({"w": "DD", "b": "F"}, "'w' has shape"),
        ({"w": "DF", "b": "F", "c": "D"}, "lacks c"),
        ({"w": "DF"}, "also contains b"),
    ):
        with pytest.raises(UserError, match=word):
            match_shapes(where, tensors, dims)
    with pytest.raises(UserError, match=r"also contains 'a\\nb'"):
        match_shapes(where, {"a\nb": torch.zeros(1)}, {})
    with pytest.raises(UserError, match="shape"):
        match_shapes(where, {"w": torch.zeros(0, 4)}, {"w": "DF"})


def test_what_many_tables_share_is_no_bomb(tmp_path: Path) -> None:
    """An optimiser's groups share their settings, tables a device: short tuples of numbers and names."""
    layers = [torch.nn.Linear(2, 2) for _ in range(60)]
    adam = torch.optim.Adam([{"params": layer.parameters()} for layer in layers])
    sum(layer(torch.ones(2)).sum() for layer in layers).backward()  # pyright: ignore
    adam.step()
    betas, few = (0.9, 0.999), tuple(range(8))
    saved = {"ae": layers[0].state_dict(), "optimizer": adam.state_dict()}
    saved |= {f"table {n}": {"betas": betas, "few": few, "of": None} for n in range(60)}
    torch.save(saved, tmp_path / "x.pt")
    assert torch.equal(read_pt(tmp_path / "x.pt")["ae"]["weight"], layers[0].weight)
