"""Reads files that strangers made: safetensors, npz, .pt and JSON, so that the worst that happens is a sentence.

What a header claims is compared with the size of the file before anything is allocated; what an archive and a pickle
claim, `archives.py` looks at; NaN and infinity are refused. Nothing is ever unpacked onto the disk. Floating-point
tensors come back in float32, whole numbers and truth values in their own type.
"""

import contextlib
import itertools
import json
import math
import re
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from panscope.formats.archives import MAX_INDEX_BYTES, ZIP_ERRORS, archive_at, check_pickle
from panscope.types import UserError

_MAX_DEPTH = 50
"""How many tables and lists a value of JSON may stand in."""
_MAX_INT = (1 << 63) - 1
_CHUNK = 1 << 20
"""Bytes that are unpacked at a time."""
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MAX_DIMS = 8
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_COPY = "take an undamaged copy"


def _any_name(name: str) -> bool:
    return True


def read_json(path: Path) -> dict[str, Any]:
    """The table in a JSON file; NaN and infinity in it become None. Raises UserError for anything else.

    Every whole number in it is of at most 64 bits, and every text can be written as UTF-8.
    """
    with _as_user_errors(path, "JSON", (ValueError, RecursionError)):
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise UserError(f"the file {str(path)!r} is {path.stat().st_size} bytes of JSON: {_COPY}")
        value = _sanitised(json.loads(path.read_bytes().decode("utf-8")))
    if not isinstance(value, dict):
        raise UserError(f"the file {str(path)!r} holds no table: {_COPY}")
    return value


def _sanitised(value: Any, depth: int = 0) -> Any:
    """The same without NaN and infinity; raises ValueError for what no configuration needs and few files can hold."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"its tables and lists stand more than {_MAX_DEPTH} deep in each other")
    if isinstance(value, dict):
        return {_sanitised(name): _sanitised(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list):
        return [_sanitised(item, depth + 1) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and abs(value) > _MAX_INT:
        raise ValueError(f"it holds a whole number of {value.bit_length()} bits")
    if isinstance(value, str):
        value.encode()  # JSON and pickles can hold half of a surrogate pair, which no file can
    return value


def inside(folder: Path, name: object) -> Path:
    """The path of a file that another file names; raises UserError for a name that leads out of the folder."""
    if isinstance(name, str) and name and "\\" not in name and "\0" not in name:
        parts = Path(name).parts
        if not Path(name).is_absolute() and ".." not in parts:
            return folder / name
    raise UserError(f"{str(folder)!r} names the file {name!r}, which is not in it: {_COPY}")


def match_shapes(
    path: Path, tensors: Mapping[str, Tensor], dims: Mapping[str, str], optional: str = ""
) -> dict[str, int]:
    """The sizes D, F, E ... of tensors whose dimensions are given as letters, `{"W_enc": "DF", "b_enc": "F"}`.

    Tensors named in `optional` (names with blanks between) may be missing. Raises UserError unless all others are
    there, no further ones are, and the sizes agree.
    """
    missing = [name for name in dims if name not in tensors and name not in optional.split()]
    unknown = [name for name in tensors if name not in dims]
    if missing or unknown:
        extra = ", ".join(sorted(unknown)[:8])[:200]
        extra = extra if extra.isprintable() else repr(extra)
        what = f"lacks {', '.join(missing)}" if missing else f"holds {extra} too"
        raise UserError(f"{str(path)!r} {what}: expected the tensors {', '.join(dims)}; give files of this format")
    sizes: dict[str, int] = {}
    for name, letters in dims.items():
        if name in tensors:
            shape = tuple(tensors[name].shape)
            expected = ", ".join(str(sizes.get(letter, letter)) for letter in letters)
            for letter, size in zip(letters, shape, strict=False):
                sizes.setdefault(letter, size)
            if len(shape) != len(letters) or [sizes[letter] for letter in letters] != list(shape) or 0 in shape:
                raise UserError(f"{str(path)!r}: tensor {name!r} has shape {shape}, expected ({expected}); {_COPY}")
    return sizes


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a safetensors file, from its header alone; raises as `read_safetensors`."""
    with _as_user_errors(path, "safetensors", (ValueError, RecursionError)), path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_INDEX_BYTES):
            raise ValueError(f"its header claims {length} bytes, the file has {size}")
        header = json.loads(file.read(length).decode("utf-8"))
        if not isinstance(header, dict):
            raise ValueError("its header is no table")
        header.pop("__metadata__", None)
        shapes: dict[str, tuple[int, ...]] = {}
        places: list[tuple[int, int]] = []
        for name, entry in header.items():
            shapes[name], place = _entry(name, entry, size - 8 - length)
            places.append(place)
        if any(start < end for (_, end), (start, _) in itertools.pairwise(sorted(places))):
            raise ValueError("its tensors overlap")
    return shapes


def _entry(name: str, entry: Any, size: int) -> tuple[tuple[int, ...], tuple[int, int]]:
    """The shape and place of one tensor, which lies in the `size` bytes after the header."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str) or entry["dtype"] not in _DTYPES:
        raise ValueError(f"tensor {name!r} has a type that is not read: use one of {', '.join(_DTYPES)}")
    shape, offsets = _nonnegative_ints(entry.get("shape")), _nonnegative_ints(entry.get("data_offsets"))
    if shape is None or len(shape) > _MAX_DIMS or offsets is None or len(offsets) != 2:
        raise ValueError(f"tensor {name!r} has no shape and place")
    start, end = offsets
    if not start <= end <= size or end - start != math.prod(shape) * _DTYPES[entry["dtype"]].itemsize:
        raise ValueError(f"tensor {name!r} claims shape {shape} at bytes {start} to {end} of {size}")
    return tuple(shape), (start, end)


def _nonnegative_ints(value: Any) -> list[int] | None:
    """A list of whole numbers from 0 on, which torch can count to, or None."""
    if not isinstance(value, list):
        return None
    return value if all(type(item) is int and 0 <= item <= _MAX_INT for item in value) else None


def read_safetensors(path: Path, wanted: Callable[[str], bool] = _any_name) -> dict[str, Tensor]:
    """The tensors of a safetensors file whose names are `wanted`; no other is read.

    Raises UserError for a file that is damaged, claims more than it has, or holds NaN or infinity.
    """
    names = [name for name in safetensors_shapes(path) if wanted(name)]
    with (
        _as_user_errors(path, "safetensors", (ValueError, safetensors.SafetensorError)),
        safetensors.safe_open(str(path), framework="pt") as file,
    ):
        return {name: _loaded(path, name, file.get_tensor(name), copy=True) for name in names}


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of an npz file; objects are refused. Raises UserError as `read_safetensors`."""
    with _as_user_errors(path, "npz", ZIP_ERRORS), archive_at(path) as archive:
        arrays: dict[str, Tensor] = {}
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name == member.filename or not re.fullmatch(r"[\w.-]+", name) or name in arrays:
                raise ValueError(f"its member {member.filename!r} is no array")
            with archive.open(member) as stream:
                arrays[name] = _loaded(path, name, torch.from_numpy(_array(name, stream, member.file_size)))
        return arrays


def _array(name: str, stream: IO[bytes], size: int) -> np.ndarray[Any, Any]:
    """One array of an npz member that unpacks to `size` bytes."""
    version = np.lib.format.read_magic(stream)
    if version not in _NPY_HEADERS:
        raise ValueError(f"array {name!r} is of npy version {version}")
    try:
        shape, fortran, dtype = _NPY_HEADERS[version](stream)
    except Exception as error:  # noqa: BLE001  numpy reads the header as Python, and raises whatever it leads to
        raise ValueError(f"array {name!r} has no header of numpy's: {error}") from None
    if dtype.kind not in "fiub" or dtype.itemsize > 8 or len(shape) > _MAX_DIMS or min(shape, default=0) < 0:
        raise ValueError(f"array {name!r} of {dtype} holds no plain numbers")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed + stream.tell() != size:
        raise ValueError(f"array {name!r} claims shape {shape}, its member has {size} bytes")
    raw, filled = np.empty(claimed, np.uint8), 0
    while part := stream.read(min(_CHUNK, claimed - filled)):
        raw[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
        filled += len(part)
    if filled != claimed or stream.read(1):
        raise ValueError(f"array {name!r} is cut")
    array = raw.view(dtype).reshape(shape, order="F" if fortran else "C")
    wide = np.dtype(np.int64) if dtype.kind == "u" and dtype.itemsize > 1 else dtype.newbyteorder("=")
    return array.astype(wide, copy=False)


def read_pt(path: Path) -> dict[str, Any]:
    """The table that torch.save wrote: tensors, tables of tensors, plain numbers and words; what else is in it is left.

    Raises UserError as `read_safetensors`, and for a pickle that names anything but tensors, or that is of torch's old
    format, whose claims cannot be compared with the file.
    """
    with _as_user_errors(path, "what torch.save writes", ZIP_ERRORS):
        with path.open("rb") as file:
            begins, is_archive = file.read(2), zipfile.is_zipfile(file)
        if not is_archive and begins in (b"PK", b""):
            raise ValueError("its end is missing")
        if not is_archive:
            raise UserError(
                f"the file {str(path)!r} is a pickle, or of the format that torch wrote before version 1.6: Panscope "
                "runs no code of a file; save its tensors as safetensors, or by torch.save of a newer torch"
            )
        check_pickle(path)
        try:
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # noqa: BLE001  torch raises whatever a wrong pickle leads it to
            said = str(error).rsplit("WeightsUnpickler error: ", 1)[-1].strip()
            raise ValueError(said.split("\n")[0][:200] or type(error).__name__) from None
        if not isinstance(value, dict):
            raise UserError(f"the file {str(path)!r} holds no table of tensors: save a state dict")
        return _plain_values(path, value)


def _plain_values(path: Path, value: dict[Any, Any]) -> dict[str, Any]:
    """What is read of a .pt file's table, in which views may claim more numbers than the file has."""
    inner = {_sanitised(key): table for key, table in value.items() if isinstance(key, str) and isinstance(table, dict)}
    claimed = sum(
        item.numel() * item.element_size()
        for table in (value, *inner.values())
        for item in table.values()
        if isinstance(item, Tensor)
    )
    if claimed > path.stat().st_size:
        raise UserError(
            f"the file {str(path)!r} claims {claimed} bytes of tensors, it has {path.stat().st_size}: {_COPY}"
        )

    def read(table: dict[Any, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in table.items():
            if isinstance(key, str) and isinstance(item, Tensor):
                found[_sanitised(key)] = _loaded(path, key, item, copy=True)
            elif isinstance(key, str) and (item is None or isinstance(item, bool | int | float | str)):
                found[_sanitised(key)] = _sanitised(item)
        return found

    return read(value) | {key: read(table) for key, table in inner.items()}


def _loaded(path: Path, name: str, tensor: Tensor, *, copy: bool = False) -> Tensor:
    """The tensor, or a copy of its own: floating point as finite float32; raises UserError otherwise."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_complex():
        raise UserError(f"{str(path)!r}: tensor {name!r} is no plain array of numbers; save it as one")
    if not tensor.is_floating_point():
        return tensor.detach().to(tensor.dtype, memory_format=torch.contiguous_format, copy=copy)
    found = tensor.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=copy)
    if found.numel() and not all(torch.isfinite(end) for end in torch.aminmax(found)):
        raise UserError(f"{str(path)!r}: tensor {name!r} holds NaN or infinity; take undamaged weights")
    return found


@contextlib.contextmanager
def _as_user_errors(path: Path, kind: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn what goes wrong with a file into one sentence that names it."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{str(path)!r} is no file that {kind} could be read from: {_COPY}")
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"the file {str(path)!r} is missing; {_COPY}") from None
    except OSError as error:
        raise UserError(f"the file {str(path)!r} cannot be read: {error.strerror or error}; {_COPY}") from None
    except errors as error:
        reason = str(error).strip().split("\n")[0][:300]
        raise UserError(f"the file {str(path)!r} is damaged or is not {kind}: {reason}; {_COPY}") from None
