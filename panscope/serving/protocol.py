"""The protocol between trainers and activation servers, on top of Arrow Flight.

A trainer connects with a Hello and receives a ServerInfo. It then repeatedly asks which of the windows that it has not
received are in memory, and fetches one by its ticket. Every request contains the trainer's whole position, so the
server's state about trainers can be lost safely: a restarted server continues as if nothing had happened.

All messages are JSON. An error has a code, and a message where it is meant for a person.
"""

import json
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pyarrow import flight
from pydantic import Field

from panscope.activations.store.manifest import Manifest
from panscope.activations.store.windows import Slice, Windows
from panscope.config import Config
from panscope.types import UserError

HELLO, NEXT, BYE, HEALTH = "hello", "next", "bye", "health"
"""The actions."""
REFUSED, FAILED, MISSED, UNKNOWN = "refused", "failed", "missed", "unknown"
"""Error codes: the trainer is rejected; the server has failed; the window is not in memory; the trainer is unknown and
has to reconnect."""
TOKEN_HEADER = "authorization"
_Message = TypeVar("_Message", bound=Config)


class Hello(Config):
    """The first request of a trainer on every new connection."""

    trainer: str = Field(min_length=1, max_length=200)
    weights: str | None
    """Hash of the weights of the language model that the coders are trained for; None accepts any model."""
    sites: tuple[str, ...] = Field(min_length=1)


class ServerInfo(Config):
    """The response to Hello: everything that determines which rows and windows the server has."""

    manifest: Manifest
    """The store's manifest, restricted to the requested sites."""
    window_rows: int = Field(ge=1)
    part: str
    """The slice of the store, such as 2/8."""
    forget: float = Field(gt=0)
    """Seconds of inactivity after which the server forgets a trainer."""

    def windows(self) -> Windows:
        """The windows of the slice, in row numbers of the whole store."""
        manifest = self.manifest
        assert manifest.rows is not None
        return Windows(manifest.rows, self.window_rows, manifest.cut, Slice.parse(self.part))


class Position(Config):
    """Which windows of its current epoch a trainer has received."""

    trainer: str
    epoch: int = Field(ge=0)
    had: str
    """The received windows, one bit each; see `encode_bits`."""
    wait: float = Field(ge=0, le=60)
    """Seconds to wait for a non-empty answer; 0 for a keep-alive request."""


class Offer(Config):
    """Windows in memory that the trainer has not received, the oldest first."""

    windows: tuple[int, ...]


class Bye(Config):
    """Sent by a trainer that disconnects, if it can."""

    trainer: str


class Ticket(Config):
    """A request for one window, by one trainer."""

    trainer: str
    epoch: int = Field(ge=0)
    window: int = Field(ge=0)
    sites: tuple[str, ...] = Field(min_length=1)


def encode(message: Config) -> bytes:
    """The JSON bytes of a message."""
    return message.model_dump_json().encode()


def decode(kind: type[_Message], data: bytes, where: str) -> _Message:
    """Parse a message of type `kind`; raises UserError naming `where` if the data is anything else."""
    try:
        fields = json.loads(data)
    except ValueError:
        raise UserError(f"{where} is not JSON: use the same version of panscope on both sides") from None
    if not isinstance(fields, dict):
        raise UserError(f"{where} is not a JSON object: use the same version of panscope on both sides")
    return kind.read(fields, where)


def encode_bits(received: NDArray[np.bool_]) -> str:
    """A mask [windows] as hexadecimal digits, the first window in the highest bit."""
    return np.packbits(received).tobytes().hex()


def decode_bits(text: str, windows: int) -> NDArray[np.bool_]:
    """[windows] the inverse of `encode_bits`; raises UserError if `text` does not have that many windows."""
    try:
        packed = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
    except ValueError:
        packed = np.zeros(0, dtype=np.uint8)
    if len(packed) != -(-windows // 8):
        raise UserError(f"the position has {4 * len(text)} windows, and the slice has {windows}: reconnect")
    return np.unpackbits(packed, count=windows).astype(np.bool_)


def protocol_error(code: str, message: str = "") -> flight.FlightServerError:
    """The exception that a server raises to report an error to the client."""
    return flight.FlightServerError(code, extra_info=json.dumps([code, message]).encode())


def parse_error(raised: BaseException) -> tuple[str, str]:
    """Code and message of an error made by `protocol_error`; two empty strings for any other exception."""
    try:
        fields: Any = json.loads(getattr(raised, "extra_info", None) or b"")
    except ValueError:
        return "", ""
    return (str(fields[0]), str(fields[1])) if isinstance(fields, list) and len(fields) == 2 else ("", "")
