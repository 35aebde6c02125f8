"""Checks on zip archives and the pickles in them, made before anything is unpacked or unpickled.

npz and .pt files are zip archives. The readers of Python and torch load the whole central directory into memory,
inflate as many bytes as it states, and may create an object per byte of a pickle, so a small file could exhaust the
memory. In genuine files the directory and the pickle take kilobytes, and weights hardly compress.
"""

import contextlib
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from panscope.types import UserError

MAX_INDEX_BYTES = 1 << 20
"""The largest size, in bytes, of JSON, a safetensors header, a pickle or the central directory of an archive."""
ZIP_ERRORS = (ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error, struct.error)
_FREE_BYTES = 16 << 20
_MAX_RATIO = 8
"""An archive may unpack to `_FREE_BYTES` bytes, or to `_MAX_RATIO` times its size if that is more."""
_MAX_OPCODES = 200_000
_MAX_UNFOLDED = 1 << 20
_END, _END_64 = 22, 98
"""Size in bytes of the records after the central directory; the second includes those of zip64."""
_TENSOR_GLOBALS = re.compile(
    r"collections OrderedDict|torch (?!Untyped|Typed)\w+Storage|torch (Size|device|b?float\d+|int\d+|uint8|bool)"
    r"|torch\._utils _rebuild_(tensor(_v2)?|parameter)"
)
"""The globals that a pickle of tensors may refer to."""
_NAMING_OPCODES = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")
_MEMO_PUT, _MEMO_GET = ("BINPUT", "LONG_BINPUT"), ("BINGET", "LONG_BINGET")
_ATOMS = (
    *("GLOBAL", "BINUNICODE", "SHORT_BINSTRING", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "EMPTY_TUPLE"),
    *("NONE", "NEWTRUE", "NEWFALSE"),
)
_TUPLE_SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MAX_SHARED_PARTS = 8
"""The most parts of a tuple that may be referenced repeatedly, such as settings shared by optimiser groups."""


@contextlib.contextmanager
def archive_at(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose members are safe to unpack; raises one of `ZIP_ERRORS` if it is invalid or too large."""
    size = path.stat().st_size
    _check_directory(path, size)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
            raise ValueError("it uses a compression method that numpy never uses")
        unpacked = sum(member.file_size for member in members)
        if unpacked > max(_FREE_BYTES, _MAX_RATIO * size):
            raise ValueError(f"its {len(members)} members claim {unpacked} bytes, the file has {size}")
        yield archive


def _check_directory(path: Path, size: int) -> None:
    """Raise ValueError unless the central directory is small and ends directly before the end records.

    Otherwise an archive could contain two directories, one found by Python's reader and another by torch's.
    """
    with path.open("rb") as file:
        file.seek(max(0, size - _END_64))
        last = file.read().rjust(_END_64, b"\0")
    end = last[-_END:]
    if not end.startswith(b"PK\5\6") or not end.endswith(b"\0\0"):
        raise ValueError("its end is missing, or something follows it")
    if last[-_END - 20 :].startswith(b"PK\6\7"):
        length, start, after = *struct.unpack_from("<QQ", last, 40), _END_64
    else:
        length, start, after = *struct.unpack_from("<LL", end, 12), _END
    if length > MAX_INDEX_BYTES or start + length != size - after:
        raise ValueError(f"its central directory claims {length} bytes from offset {start}, the file has {size}")


def check_pickle(path: Path) -> None:
    """Raise ValueError or UserError unless the archive is uncompressed and its pickle contains only tensors."""
    with archive_at(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed, which torch.save never does")
        pickles = [member for member in members if member.filename.endswith("data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MAX_INDEX_BYTES:
            raise ValueError(f"it does not contain one data.pkl of at most {MAX_INDEX_BYTES} bytes")
        raw = archive.read(pickles[0])
    _check_names(path, raw)
    _check_parts(raw)


def _check_names(path: Path, raw: bytes) -> None:
    """Raise UserError for a pickle that refers to anything but tensors."""
    for opcode, argument, _ in pickletools.genops(raw):
        if opcode.name in _NAMING_OPCODES or (opcode.name == "GLOBAL" and not _TENSOR_GLOBALS.fullmatch(str(argument))):
            requested = str(argument).replace(" ", ".") if opcode.name == "GLOBAL" else "an object"
            raise UserError(
                f"the file {str(path)!r} asks for {requested}, which is not a tensor: Panscope never runs code from a "
                "file; save a state dict, or its tensors as safetensors"
            )


def _check_parts(raw: bytes) -> None:
    """Raise ValueError for a pickle of too many objects, counting an object again for each reference to it.

    A pair of a pair of a pair ... takes three bytes a level and 2^levels steps to hash or to print. A referenced object
    of unknown size is assumed to contain everything unpickled so far, so each such reference doubles the count; genuine
    files only repeat names, numbers and short tuples of these.
    """
    opcodes, unfolded, memo = 0, 0, dict[object, int | None]()
    parts: int | None = None
    """Number of parts of the last object; None if unknown."""
    atoms: int | None = 0
    """Number of objects without parts since the last mark; None if there were others since then."""
    for opcode, argument, _ in pickletools.genops(raw):
        if opcode.name in _MEMO_PUT:
            memo[argument] = parts
        elif opcode.name in _MEMO_GET:
            parts = memo.get(argument)
            unfolded += unfolded if parts is None else parts
        else:
            parts = _parts(opcode.name, atoms)
        if opcode.name == "MARK":
            atoms = 0
        elif opcode.name not in _MEMO_PUT:
            # Once a tuple has closed a mark, the objects before that mark are unknown again.
            atoms = None if parts != 0 or atoms is None or opcode.name == "TUPLE" else atoms + 1
        opcodes, unfolded = opcodes + 1, unfolded + 1
        if opcodes > _MAX_OPCODES or unfolded > _MAX_UNFOLDED:
            raise ValueError("its pickle creates too many objects for a dict of tensors")


def _parts(opcode: str, atoms: int | None) -> int | None:
    """The number of parts of the object that an opcode creates, none of which has parts itself; None if unknown."""
    if opcode in _ATOMS:
        return 0
    if atoms is None or (opcode != "TUPLE" and atoms < _TUPLE_SIZES.get(opcode, atoms + 1)):
        return None
    found = atoms if opcode == "TUPLE" else _TUPLE_SIZES[opcode]
    return found if found <= _MAX_SHARED_PARTS else None
