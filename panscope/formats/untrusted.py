"""Safe readers of files from untrusted sources (safetensors, npz, .pt and JSON): at worst they raise a UserError.

The sizes in a header are compared with the size of the file before anything is allocated; `archives.py` does this for
zip archives and pickles. NaN and infinity are rejected. Nothing is ever unpacked to disk. Floating-point tensors are
returned as float32, integers and booleans in their own type.
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
"""The deepest nesting of objects and lists in JSON."""
_MAX_INT = (1 << 63) - 1
_CHUNK = 1 << 20
"""Bytes unpacked at a time."""
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
    """The object in a JSON file, with NaN and infinity replaced by None; raises UserError for anything else.

    All integers have at most 64 bits, and all strings can be encoded as UTF-8.
    """
    with _as_user_errors(path, "JSON", (ValueError, RecursionError)):
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise UserError(f"the file {str(path)!r} is {path.stat().st_size} bytes of JSON: {_COPY}")
        value = _sanitised(json.loads(path.read_bytes().decode("utf-8")))
    if not isinstance(value, dict):
        raise UserError(f"the file {str(path)!r} does not contain a JSON object: {_COPY}")
    return value


def _sanitised(value: Any, depth: int = 0) -> Any:
    """The value without NaN and infinity; raises ValueError for deep nesting, large integers and invalid strings."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"its objects and lists are nested more than {_MAX_DEPTH} deep")
    if isinstance(value, dict):
        return {_sanitised(name): _sanitised(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list):
        return [_sanitised(item, depth + 1) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and abs(value) > _MAX_INT:
        raise ValueError(f"it contains an integer of {value.bit_length()} bits")
    if isinstance(value, str):
        value.encode()  # JSON and pickles can contain lone surrogates, which UTF-8 cannot encode
    return value


def inside(folder: Path, name: object) -> Path:
    """The path of a file named in another file; raises UserError for a name that leads out of the folder."""
    if isinstance(name, str) and name and "\\" not in name and "\0" not in name:
        parts = Path(name).parts
        if not Path(name).is_absolute() and ".." not in parts:
            return folder / name
    raise UserError(f"{str(folder)!r} refers to the file {name!r}, which is outside the folder: {_COPY}")


def match_shapes(
    path: Path, tensors: Mapping[str, Tensor], dims: Mapping[str, str], optional: str = ""
) -> dict[str, int]:
    """The sizes D, F, E ... of tensors whose dimensions are given as letters, `{"W_enc": "DF", "b_enc": "F"}`.

    Tensors named in `optional` (separated by spaces) may be missing. Raises UserError if any other tensor is missing,
    if there are unknown tensors, or if the sizes disagree.
    """
    missing = [name for name in dims if name not in tensors and name not in optional.split()]
    unknown = [name for name in tensors if name not in dims]
    if missing or unknown:
        extra = ", ".join(sorted(unknown)[:8])[:200]
        extra = extra if extra.isprintable() else repr(extra)
        what = f"lacks {', '.join(missing)}" if missing else f"also contains {extra}"
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
            raise ValueError("its header is not a JSON object")
        header.pop("__metadata__", None)
        shapes: dict[str, tuple[int, ...]] = {}
        extents: list[tuple[int, int]] = []
        for name, entry in header.items():
            shapes[name], extent = _entry(name, entry, size - 8 - length)
            extents.append(extent)
        if any(start < end for (_, end), (start, _) in itertools.pairwise(sorted(extents))):
            raise ValueError("its tensors overlap")
    return shapes


def _entry(name: str, entry: Any, size: int) -> tuple[tuple[int, ...], tuple[int, int]]:
    """The shape of one tensor and its start and end in the `size` bytes after the header."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str) or entry["dtype"] not in _DTYPES:
        raise ValueError(f"tensor {name!r} has an unsupported type: use one of {', '.join(_DTYPES)}")
    shape, offsets = _nonnegative_ints(entry.get("shape")), _nonnegative_ints(entry.get("data_offsets"))
    if shape is None or len(shape) > _MAX_DIMS or offsets is None or len(offsets) != 2:
        raise ValueError(f"tensor {name!r} has no valid shape and data_offsets")
    start, end = offsets
    if not start <= end <= size or end - start != math.prod(shape) * _DTYPES[entry["dtype"]].itemsize:
        raise ValueError(f"tensor {name!r} claims shape {shape} at bytes {start} to {end} of {size}")
    return tuple(shape), (start, end)


def _nonnegative_ints(value: Any) -> list[int] | None:
    """A list of integers from 0 to 2^63 - 1, or None if it is not one."""
    if not isinstance(value, list):
        return None
    return value if all(type(item) is int and 0 <= item <= _MAX_INT for item in value) else None


def read_safetensors(path: Path, wanted: Callable[[str], bool] = _any_name) -> dict[str, Tensor]:
    """The tensors of a safetensors file whose names are `wanted`; the others are not read.

    Raises UserError for a file that is damaged, claims more data than it has, or contains NaN or infinity.
    """
    names = [name for name in safetensors_shapes(path) if wanted(name)]
    with (
        _as_user_errors(path, "safetensors", (ValueError, safetensors.SafetensorError)),
        safetensors.safe_open(str(path), framework="pt") as file,
    ):
        return {name: _checked_tensor(path, name, file.get_tensor(name), copy=True) for name in names}


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of an npz file; object arrays are rejected. Raises UserError as `read_safetensors`."""
    with _as_user_errors(path, "npz", ZIP_ERRORS), archive_at(path) as archive:
        arrays: dict[str, Tensor] = {}
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name == member.filename or not re.fullmatch(r"[\w.-]+", name) or name in arrays:
                raise ValueError(f"its member {member.filename!r} is not an array")
            with archive.open(member) as stream:
                arrays[name] = _checked_tensor(path, name, torch.from_numpy(_array(name, stream, member.file_size)))
        return arrays


def _array(name: str, stream: IO[bytes], size: int) -> np.ndarray[Any, Any]:
    """The array in an npz member that unpacks to `size` bytes."""
    version = np.lib.format.read_magic(stream)
    if version not in _NPY_HEADERS:
        raise ValueError(f"array {name!r} has the unknown npy version {version}")
    try:
        shape, fortran, dtype = _NPY_HEADERS[version](stream)
    except Exception as error:  # noqa: BLE001  numpy parses the header as Python, which can raise anything
        raise ValueError(f"array {name!r} has no valid npy header: {error}") from None
    if dtype.kind not in "fiub" or dtype.itemsize > 8 or len(shape) > _MAX_DIMS or min(shape, default=0) < 0:
        raise ValueError(f"array {name!r} of {dtype} does not contain plain numbers")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed + stream.tell() != size:
        raise ValueError(f"array {name!r} claims shape {shape}, its member has {size} bytes")
    raw, filled = np.empty(claimed, np.uint8), 0
    while part := stream.read(min(_CHUNK, claimed - filled)):
        raw[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
        filled += len(part)
    if filled != claimed or stream.read(1):
        raise ValueError(f"array {name!r} is truncated")
    array = raw.view(dtype).reshape(shape, order="F" if fortran else "C")
    wide = np.dtype(np.int64) if dtype.kind == "u" and dtype.itemsize > 1 else dtype.newbyteorder("=")
    return array.astype(wide, copy=False)


def read_pt(path: Path) -> dict[str, Any]:
    """The dict that torch.save wrote: tensors, dicts of tensors, numbers and strings; everything else is dropped.

    Raises UserError as `read_safetensors`, and for a pickle that refers to anything but tensors or is in torch's old
    format, whose claims cannot be compared with the size of the file.
    """
    with _as_user_errors(path, "a torch.save file", ZIP_ERRORS):
        with path.open("rb") as file:
            magic, is_archive = file.read(2), zipfile.is_zipfile(file)
        if not is_archive and magic in (b"PK", b""):
            raise ValueError("its end is missing")
        if not is_archive:
            raise UserError(
                f"the file {str(path)!r} is a pickle, or in the format of torch before version 1.6: Panscope never "
                "runs code from a file; save its tensors as safetensors, or with torch.save of a newer torch"
            )
        check_pickle(path)
        try:
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # noqa: BLE001  torch can raise anything for an invalid pickle
            message = str(error).rsplit("WeightsUnpickler error: ", 1)[-1].strip()
            raise ValueError(message.split("\n")[0][:200] or type(error).__name__) from None
        if not isinstance(value, dict):
            raise UserError(f"the file {str(path)!r} does not contain a dict of tensors: save a state dict")
        return _plain_values(path, value)


def _plain_values(path: Path, value: dict[Any, Any]) -> dict[str, Any]:
    """The supported entries of a .pt file's dict; raises UserError if its tensors are larger than the file.

    Strided views could claim more numbers than are stored.
    """
    inner = {_sanitised(key): table for key, table in value.items() if isinstance(key, str) and isinstance(table, dict)}
    claimed = sum(
        item.numel() * item.element_size()
        for table in (value, *inner.values())
        for item in table.values()
        if isinstance(item, Tensor)
    )
    if claimed > path.stat().st_size:
        raise UserError(
            f"the file {str(path)!r} claims {claimed} bytes of tensors, but has {path.stat().st_size}: {_COPY}"
        )

    def read(table: dict[Any, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in table.items():
            if isinstance(key, str) and isinstance(item, Tensor):
                found[_sanitised(key)] = _checked_tensor(path, key, item, copy=True)
            elif isinstance(key, str) and (item is None or isinstance(item, bool | int | float | str)):
                found[_sanitised(key)] = _sanitised(item)
        return found

    return read(value) | {key: read(table) for key, table in inner.items()}


def _checked_tensor(path: Path, name: str, tensor: Tensor, *, copy: bool = False) -> Tensor:
    """The tensor, floating point as float32, as a copy if `copy`; raises UserError unless dense, real and finite."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_complex():
        raise UserError(f"{str(path)!r}: tensor {name!r} is not a dense array of real numbers; save it as one")
    if not tensor.is_floating_point():
        return tensor.detach().to(tensor.dtype, memory_format=torch.contiguous_format, copy=copy)
    found = tensor.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=copy)
    if found.numel() and not all(torch.isfinite(end) for end in torch.aminmax(found)):
        raise UserError(f"{str(path)!r}: tensor {name!r} contains NaN or infinity; take undamaged weights")
    return found


@contextlib.contextmanager
def _as_user_errors(path: Path, kind: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn `errors` and system errors into a UserError that names the file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{str(path)!r} is not a regular file, so {kind} cannot be read from it: {_COPY}")
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
