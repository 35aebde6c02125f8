"""A stand-in for the storage that hf-xet, which huggingface_hub brings and prefers, sends large files to.

It takes what an hf-xet sends that was told not to compress (`PLAIN`), by the protocol that huggingface/xet-core
specifies: a xorb is chunks one after another, each behind a header of 8 bytes; a shard says of which chunks of which
xorbs each file is made, and the file's sha256, in records of 48 bytes.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

PLAIN = {"HF_XET_XORB_COMPRESSION_POLICY": "none", "HF_XET_TELEMETRY_ENABLED": "0"}
"""The environment of a client that this storage understands."""
TOKEN = "xet-" + "ijklmnop" * 4
_RECORD = 48
_END = b"\xff" * 32
_VERIFIED, _WITH_SHA256 = 1 << 31, 1 << 30


@dataclass
class StandInXet:
    """What the storage holds."""

    received: dict[str, bytes]
    """Whole files by sha256."""
    xorbs: dict[str, list[bytes]] = field(default_factory=dict)
    """Chunks by the xorb's hash."""

    def answer(self, path: str, body: bytes) -> dict[str, object] | None:
        """What is said to a request; None for what this storage has not."""
        kind, _, name = path.removeprefix("/xet/v1/").partition("/")
        if kind == "xorbs":
            is_new = name.removeprefix("default/") not in self.xorbs
            self.xorbs[name.removeprefix("default/")] = list(_chunks(body))
            return {"was_inserted": is_new}
        if kind == "shards":
            self._add_files(body)
            return {"result": 1}
        return None

    def _add_files(self, shard: bytes) -> None:
        records = [shard[at : at + _RECORD] for at in range(_RECORD, len(shard), _RECORD)]
        while records[0][:32] != _END:
            flags, parts = _number(records[0], 32), _number(records[0], 36)
            content = b"".join(map(self._part, records[1 : 1 + parts]))
            sha256 = records[1 + parts * (2 if flags & _VERIFIED else 1)]
            assert flags & _WITH_SHA256 and _hexadecimal(sha256) == hashlib.sha256(content).hexdigest()
            self.received[_hexadecimal(sha256)] = content
            records = records[records.index(sha256) + 1 :]

    def _part(self, record: bytes) -> bytes:
        chunks = self.xorbs[_hexadecimal(record)][_number(record, 40) : _number(record, 44)]
        return b"".join(chunks)


def _chunks(xorb: bytes) -> Iterator[bytes]:
    while xorb:
        size, scheme = int.from_bytes(xorb[1:4], "little"), xorb[4]
        assert scheme == 0, "the client was not told to leave out compression"
        yield xorb[8 : 8 + size]
        xorb = xorb[8 + size :]


def _number(record: bytes, at: int) -> int:
    return int.from_bytes(record[at : at + 4], "little")


def _hexadecimal(record: bytes) -> str:
    """A hash as it is written: its 32 bytes are four numbers of 8, the lowest byte first."""
    return "".join(record[at : at + 8][::-1].hex() for at in range(0, 32, 8))
