"""What a zip archive and the pickle in it claim, looked at before anything is unpacked or unpickled.

npz and .pt files are zip archives. The readers of Python and torch take the list of members into memory whole, inflate
what the list says, and give a pickle's every byte an object; so a small file could fill the memory. Real ones need
kilobytes for both lists, and weights hardly compress.
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
"""Bytes of what says which tensors there are: a JSON table or header, a pickle, an archive's list of members."""
ZIP_ERRORS = (ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error, struct.error)
_MIN_LIMIT = 16 << 20
_MAX_RATIO = 8
"""An archive may unpack to `_MIN_LIMIT` bytes, or to this many times its size."""
_MAX_OPCODES = 200_000
_MAX_UNFOLDED = 1 << 20
_END, _END_64 = 22, 98
"""Bytes after the list of members; the second with those of the 64-bit form."""
_PICKLED = re.compile(
    r"collections OrderedDict|torch (?!Untyped|Typed)\w+Storage|torch (Size|device|b?float\d+|int\d+|uint8|bool)"
    r"|torch\._utils _rebuild_(tensor(_v2)?|parameter)"
)
"""All that a file of tensors names."""
_BY_NAME = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")
_KEEPING, _REPEATING = ("BINPUT", "LONG_BINPUT"), ("BINGET", "LONG_BINGET")
_WITHOUT_PARTS = (
    *("GLOBAL", "BINUNICODE", "SHORT_BINSTRING", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "EMPTY_TUPLE"),
    *("NONE", "NEWTRUE", "NEWFALSE"),
)
_FEW = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MAX_SHARED_PARTS = 8
"""Parts of a tuple that may be repeated freely, as the settings that all groups of an optimiser share."""


@contextlib.contextmanager
def archive_at(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, whose members may be unpacked; raises one of `ZIP_ERRORS` where it is none or claims too much."""
    size = path.stat().st_size
    _check_list(path, size)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
            raise ValueError("it is compressed in a way that numpy never uses")
        unpacked = sum(member.file_size for member in members)
        if unpacked > max(_MIN_LIMIT, _MAX_RATIO * size):
            raise ValueError(f"its {len(members)} members claim {unpacked} bytes, the file has {size}")
        yield archive


def _check_list(path: Path, size: int) -> None:
    """Raise unless the list of members is short, and ends where the archive's last bytes begin.

    An archive could hold two lists, one that Python's reader finds and one that torch's does; not if it ends so.
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
        raise ValueError(f"its list of members claims {length} bytes from {start} on, the file has {size}")


def check_pickle(path: Path) -> None:
    """Raise ValueError or UserError unless the archive is stored as it is and its pickle says tensors alone."""
    with archive_at(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed, which torch.save never does")
        pickles = [member for member in members if member.filename.endswith("data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MAX_INDEX_BYTES:
            raise ValueError("it holds no list of tensors, or one longer than any")
        raw = archive.read(pickles[0])
    _check_names(path, raw)
    _check_parts(raw)


def _check_names(path: Path, raw: bytes) -> None:
    """Raise UserError for a pickle that names anything but tensors."""
    for opcode, argument, _ in pickletools.genops(raw):
        if opcode.name in _BY_NAME or (opcode.name == "GLOBAL" and not _PICKLED.fullmatch(str(argument))):
            asks = str(argument).replace(" ", ".") if opcode.name == "GLOBAL" else "an object"
            raise UserError(
                f"the file {str(path)!r} asks for {asks}, which is no tensor: Panscope runs no code of a file; "
                "save a state dict, or its tensors as safetensors"
            )


def _check_parts(raw: bytes) -> None:
    """Raise for a pickle of too many objects, or of few that hold each other again and again.

    A pair of a pair of a pair ... takes three bytes a level and 2^levels steps to hash or to print. What is kept and
    repeated is at most all there is so far, so each time that doubles; real files repeat names, numbers and short
    tuples of these.
    """
    opcodes, unfolded, kept = 0, 0, dict[object, int | None]()
    parts: int | None = None
    """Of the object that was made last: None where it may be of any size."""
    atoms: int | None = 0
    """How many objects without parts came last, since a mark; None where others came since then."""
    for opcode, argument, _ in pickletools.genops(raw):
        if opcode.name in _KEEPING:
            kept[argument] = parts
        elif opcode.name in _REPEATING:
            parts = kept.get(argument)
            unfolded += unfolded if parts is None else parts
        else:
            parts = _parts(opcode.name, atoms)
        if opcode.name == "MARK":
            atoms = 0
        elif opcode.name not in _KEEPING:
            # What stood before a mark is unknown again once a tuple has closed it.
            atoms = None if parts != 0 or atoms is None or opcode.name == "TUPLE" else atoms + 1
        opcodes, unfolded = opcodes + 1, unfolded + 1
        if opcodes > _MAX_OPCODES or unfolded > _MAX_UNFOLDED:
            raise ValueError("its pickle makes more objects than any list of tensors")


def _parts(opcode: str, atoms: int | None) -> int | None:
    """How many parts what an opcode makes has, of which none has any; None where it may be of any size."""
    if opcode in _WITHOUT_PARTS:
        return 0
    if atoms is None or (opcode != "TUPLE" and atoms < _FEW.get(opcode, atoms + 1)):
        return None
    found = atoms if opcode == "TUPLE" else _FEW[opcode]
    return found if found <= _MAX_SHARED_PARTS else None
