"""Ways to damage or forge the files of a coder, each a function from one file to a worse one.

`STRUCTURAL` ones must be refused or change nothing; what stands in `CONTENT` may say another coder of the same sizes,
since no foreign format has a checksum: a flipped bit of a weight is a weight.
"""

import functools
import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

Attack = Callable[[Path, Path], None]
"""Changes a file; the second path is a folder outside, with `secret` in it, where `canary` must never appear."""
TERA = 1 << 42


class Code:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.canary,)


def read_tensors(file: Path) -> dict[str, Any]:
    """Of whatever kind the file is."""
    if file.suffix == ".safetensors":
        return safetensors.torch.load_file(file)
    if file.suffix == ".npz":
        with np.load(file) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return dict(torch.load(file, weights_only=True))


def write_tensors(file: Path, table: dict[str, Any]) -> None:
    """Back into the same kind."""
    if file.suffix == ".safetensors":
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in table.items()}, file)
    elif file.suffix == ".npz":
        with file.open("wb") as stream:
            np.savez(stream, **{name: tensor.numpy() for name, tensor in table.items()})
    else:
        torch.save(table, file)


def holds_tensors(file: Path) -> bool:
    return file.suffix in (".safetensors", ".npz", ".pt")


def _raw_pickle(file: Path, outside: Path) -> None:
    file.write_bytes(pickle.dumps({"a": Code(outside / "canary")}))


def _pickle_protocol_0(file: Path, outside: Path) -> None:
    file.write_bytes(pickle.dumps(Code(outside / "canary"), protocol=0))


def _saved_code(file: Path, outside: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(2, 2), "x": Code(outside / "canary")}, file)


def _saved_code_in_the_old_way(file: Path, outside: Path) -> None:
    torch.save({"x": Code(outside / "canary")}, file, _use_new_zipfile_serialization=False)


def _saved_code_within(file: Path, outside: Path) -> None:
    torch.save({"step": 1, "ae": {"x": Code(outside / "canary")}, "config": {}}, file)


def _saved_module(file: Path, outside: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), file)


def _pickled_array(file: Path, outside: Path) -> None:
    with file.open("wb") as stream:
        np.savez(stream, W_enc=np.array([Code(outside / "canary")], dtype=object))


def _zip(file: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, raw in members.items():
            archive.writestr(name, raw)


def _climbing_members(file: Path, outside: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.zeros(3, np.float32))
    up = "../" * 6 + str(outside).lstrip("/")
    _zip(file, {f"{up}/canary": b"x", f"{outside}/canary": b"x", f"{up}/canary.npy": array.getvalue()})


def _npy_of_terabytes(file: Path, outside: Path) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({TERA},), }}".ljust(117) + "\n"
    raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(64)
    _zip(file, {"W_enc.npy": raw})


@functools.cache
def _much_in_little() -> bytes:
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("archive/data.pkl", "W_enc.npy"):
            archive.writestr(name, bytes(300 << 20))
    return found.getvalue()


def _zip_bomb(file: Path, outside: Path) -> None:
    file.write_bytes(_much_in_little())


@functools.cache
def _small_and_wide() -> bytes:
    """254 KiB that would be 255 MiB of float16, and twice that in float32."""
    header = f"{{'descr': '<f2', 'fortran_order': False, 'shape': (1024, {255 << 9}), }}".ljust(117) + "\n"
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy", head + bytes(255 << 20))
    return found.getvalue()


def _compressed_zeros(file: Path, outside: Path) -> None:
    file.write_bytes(_small_and_wide())


@functools.cache
def _full_of_names() -> bytes:
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w") as archive:
        for number in range(200_000):
            archive.writestr(f"{number}.npy", b"")
    return found.getvalue()


def _many_members(file: Path, outside: Path) -> None:
    file.write_bytes(_full_of_names())


def _archive_in_an_archive(file: Path, outside: Path) -> None:
    _zip(file, {"W_enc.npy": _small_and_wide(), "archive/data.pkl": _small_and_wide()})


def _slow_compression(file: Path, outside: Path) -> None:
    """LZMA, which may ask for gigabytes before the first byte."""
    _zip(file, {"W_enc.npy": bytes(1 << 20)}, zipfile.ZIP_LZMA)


def _saved_opcodes(opcodes: bytes) -> Attack:
    def save(file: Path, outside: Path) -> None:
        _zip(file, {"archive/data.pkl": b"\x80\x02" + opcodes, "archive/byteorder": b"little", "archive/version": b"3"})

    return save


PAIRS_OF_PAIRS = b")" + b"q\x00h\x00\x86" * 60
"""A pickle's 2^60 empty tuples in 240 bytes, on top of its stack."""
TUPLE_OF_TUPLES = b"(" + b"K\x01" * 50_000 + b"(ttq\x000" + b"(" + b"h\x00" * 50_000 + b"t"
"""A pickle's 2.5 billion numbers: the inner tuple ends with an empty one, which has a mark of its own."""


def _views_of_terabytes(file: Path, outside: Path) -> None:
    """A .pt file may say that a matrix is one number, again and again."""
    wide = torch.zeros(1).expand(1 << 20, 1 << 20)
    names = ("W_enc", "W_dec", "encoder.weight", "decoder.weight")
    torch.save({**dict.fromkeys(names, wide), "b_enc": torch.zeros(1).expand(TERA)}, file)


def _many_names(file: Path, outside: Path) -> None:
    torch.save({f"n{number}": number for number in range(20_000)}, file)


def _header(file: Path, header: object, length: int | None = None, data: bytes = b"") -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)


def _entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _header_longer_than_the_file(file: Path, outside: Path) -> None:
    _header(file, {}, length=TERA)


def _header_of_2_to_63(file: Path, outside: Path) -> None:
    _header(file, {}, length=(1 << 64) - 1)


def _claims_terabytes(file: Path, outside: Path) -> None:
    _header(file, {"W_enc": _entry([1 << 20, 1 << 20], 0, TERA), "b_enc": _entry([TERA], 0, 4 * TERA)})


def _claims_more_than_its_place(file: Path, outside: Path) -> None:
    _header(file, {"W_enc": _entry([1 << 20, 1 << 20], 0, 8)}, data=bytes(8))


def _claims_2_to_64_elements(file: Path, outside: Path) -> None:
    _header(file, {"W_enc": _entry([1 << 32, 1 << 32, 0], 0, 0), "b_enc": _entry([-4, -2], 0, 32)}, data=bytes(32))


def _all_in_one_place(file: Path, outside: Path) -> None:
    names = [f"t{number}" for number in range(2000)]
    _header(file, {name: _entry([4096], 0, 16384) for name in names}, data=bytes(16384))


def _deep_header(file: Path, outside: Path) -> None:
    _header(file, b'{"W_enc":' + b"[" * 200_000 + b"]" * 200_000 + b"}")


def _wide_header(file: Path, outside: Path) -> None:
    """Forty million bytes that would be a gigabyte of empty lists."""
    _header(file, b'{"W_enc":[' + b"[]," * 13_000_000 + b"[]]}")


def _no_table(file: Path, outside: Path) -> None:
    _header(file, b"[1, 2, 3]")


def _deep_json(file: Path, outside: Path) -> None:
    file.write_text("[" * 200_000 + "]" * 200_000)


def _deep_table(file: Path, outside: Path) -> None:
    file.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def _nested_json(file: Path, outside: Path) -> None:
    """Not so deep that the reader refuses it, but deeper than what writes it again can go."""
    file.write_text('{"metadata": ' + '{"a":' * 900 + "1" + "}" * 901)


def _wide_json(file: Path, outside: Path) -> None:
    file.write_text('{"a": [' + "{}," * 5_000_000 + "{}]}")


def _half_a_pair(file: Path, outside: Path) -> None:
    file.write_text('{"model_name": "\\ud800", "\\udfff": 1}')


def _huge_json(file: Path, outside: Path) -> None:
    file.write_text('{"k": 4, "fill": "' + "x" * (40 << 20) + '"}')


def _huge_number(file: Path, outside: Path) -> None:
    file.write_text('{"k": ' + "9" * 1_000_000 + "}")


def _no_text(file: Path, outside: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00" * 100)


def _empty(file: Path, outside: Path) -> None:
    file.write_bytes(b"")


def _zeros(file: Path, outside: Path) -> None:
    file.write_bytes(bytes(4096))


def _gone(file: Path, outside: Path) -> None:
    file.unlink()


def _folder(file: Path, outside: Path) -> None:
    file.unlink()
    file.mkdir()


def _link_to(target: str) -> Attack:
    def link(file: Path, outside: Path) -> None:
        file.unlink()
        file.symlink_to(target.format(outside=outside, name=file.name))

    return link


def _pipe(file: Path, outside: Path) -> None:
    file.unlink()
    os.mkfifo(file)


STRUCTURAL: dict[str, Attack] = {
    "a pickle with code": _raw_pickle,
    "an old pickle with code": _pickle_protocol_0,
    "torch.save of code": _saved_code,
    "old torch.save of code": _saved_code_in_the_old_way,
    "torch.save of code in a table": _saved_code_within,
    "torch.save of a module": _saved_module,
    "an npz of pickled objects": _pickled_array,
    "an archive whose members climb out": _climbing_members,
    "an npy header of terabytes": _npy_of_terabytes,
    "a zip bomb": _zip_bomb,
    "255 MiB of zeros in 254 KiB": _compressed_zeros,
    "200,000 members": _many_members,
    "an archive in an archive": _archive_in_an_archive,
    "LZMA": _slow_compression,
    "a pickle of 24 million tables": _saved_opcodes(b"}" * (24 << 20) + b"."),
    "a pickle of a million tables": _saved_opcodes(b"}" * 1_000_000 + b"."),
    "a key of 2^60 parts": _saved_opcodes(b"}" + PAIRS_OF_PAIRS + b"K\x01s."),
    "a key of 50,000 tuples of 50,000": _saved_opcodes(b"}" + TUPLE_OF_TUPLES + b"K\x01s."),
    "a function of 2^60 parts": _saved_opcodes(PAIRS_OF_PAIRS + b")R."),
    "views of terabytes": _views_of_terabytes,
    "20,000 names": _many_names,
    "a header longer than the file": _header_longer_than_the_file,
    "a header of 2^64 - 1 bytes": _header_of_2_to_63,
    "shapes of terabytes": _claims_terabytes,
    "a shape larger than its place": _claims_more_than_its_place,
    "sizes that overflow": _claims_2_to_64_elements,
    "2,000 tensors in one place": _all_in_one_place,
    "a deep header": _deep_header,
    "40 MB of header": _wide_header,
    "a header that is a list": _no_table,
    "deep JSON": _deep_json,
    "deep tables": _deep_table,
    "tables 900 deep": _nested_json,
    "5 million small tables": _wide_json,
    "half a surrogate pair": _half_a_pair,
    "40 MiB of JSON": _huge_json,
    "a number of a million digits": _huge_number,
    "no text": _no_text,
    "nothing": _empty,
    "zeros": _zeros,
    "no file": _gone,
    "a folder": _folder,
    "a link to a file outside": _link_to("{outside}/secret"),
    "a link to nothing": _link_to("{outside}/missing"),
    "a link to itself": _link_to("{name}"),
    "a link to endless zeros": _link_to("/dev/zero"),
    "a link to a folder": _link_to("{outside}"),
    "a pipe": _pipe,
}
"""Put in the place of any file of a coder."""

TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "NaN": lambda tensor: tensor.float().flatten().index_fill(0, torch.tensor(0), torch.nan).view(tensor.shape),
    "infinity": lambda tensor: tensor.float().flatten().index_fill(0, torch.tensor(0), torch.inf).view(tensor.shape),
    "beyond float32": lambda tensor: torch.full(tensor.shape, 1e300, dtype=torch.float64),
    "one row more": lambda tensor: torch.cat([tensor.flatten(), tensor.flatten()[:1]]),
    "a dimension more": lambda tensor: tensor[None],
    "no rows": lambda tensor: tensor.flatten()[:0],
    "float64": lambda tensor: tensor.double() if tensor.is_floating_point() else tensor,
}
"""Put in the place of any tensor; the last changes nothing."""

VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    3,
    1 << 70,
    0.5,
    1e308,
    float("nan"),
    "",
    "x",
    "../../../../etc/passwd",
    "~nouserxyz/x",
    "\ud800",
    "x" * 300,
    10**400,
    "relu",
    "topk",
    "layer_norm",
    [],
    [0, 1],
    [-1],
    {},
    {"in": 0.0, "out": -1.0},
    OrderedDict(k="x"),
)
"""Put in the place of any entry of a JSON file."""
