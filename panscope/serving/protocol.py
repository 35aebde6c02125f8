"""What trainers and servers say to each other, on Arrow Flight.

A trainer says hello and hears what is served. It then asks again and again which of the windows it has not had are in
memory, and takes one by a ticket. It sends its whole position with every question, so a server has nothing to remember
that matters: one that was killed and started again, or that forgot a trainer, goes on as if nothing had happened.

Every message is JSON. An error carries one word, and a sentence where it is meant for a person.
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
"""The errors: this trainer is wrong here; the server is broken; that window is not in memory; say hello first."""
TOKEN_HEADER = "authorization"
_Message = TypeVar("_Message", bound=Config)


class Hello(Config):
    """The first thing that a trainer says; also after every loss of the connection."""

    trainer: str = Field(min_length=1, max_length=200)
    weights: str | None
    """The hash of the language model's weights that it trains for; None takes any."""
    sites: tuple[str, ...] = Field(min_length=1)


class Facts(Config):
    """The answer: what is served, from which rows and windows follow."""

    manifest: Manifest
    """The store's, with the sites that were asked for."""
    window_rows: int = Field(ge=1)
    part: str
    """The slice, such as 2/8."""
    forget: float = Field(gt=0)
    """Seconds after which a trainer that says nothing is forgotten."""

    def windows(self) -> Windows:
        """Of the slice, in rows of the whole store."""
        manifest = self.manifest
        assert manifest.rows is not None
        return Windows(manifest.rows, self.window_rows, manifest.cut, Slice.parse(self.part))


class Position(Config):
    """Which windows a trainer does not need in its present epoch."""

    trainer: str
    epoch: int = Field(ge=0)
    had: str
    """A bit a window, see `bits`."""
    wait: float = Field(ge=0, le=60)
    """Seconds to wait for an answer that is not empty; 0 for a trainer that only says that it is still there."""


class Offer(Config):
    """Windows in memory that the trainer has not had, those that leave first in front."""

    windows: tuple[int, ...]


class Bye(Config):
    """The last thing that a trainer says, if it can."""

    trainer: str


class Ticket(Config):
    """One window, for one trainer."""

    trainer: str
    epoch: int = Field(ge=0)
    window: int = Field(ge=0)
    sites: tuple[str, ...] = Field(min_length=1)


def encoded(message: Config) -> bytes:
    """As it is sent."""
    return message.model_dump_json().encode()


def decoded(kind: type[_Message], data: bytes, where: str) -> _Message:
    """What was sent; raises UserError naming `where` if it is anything else."""
    try:
        fields = json.loads(data)
    except ValueError:
        raise UserError(f"{where} is not JSON: use the same version of panscope on both sides") from None
    if not isinstance(fields, dict):
        raise UserError(f"{where} is not a table: use the same version of panscope on both sides")
    return kind.read(fields, where)


def bits(had: NDArray[np.bool_]) -> str:
    """[windows] as hexadecimal digits, the first window in the highest bit."""
    return np.packbits(had).tobytes().hex()


def from_bits(text: str, windows: int) -> NDArray[np.bool_]:
    """Undo `bits`; raises UserError if it is not of that many windows."""
    try:
        packed = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
    except ValueError:
        packed = np.zeros(0, dtype=np.uint8)
    if len(packed) != -(-windows // 8):
        raise UserError(f"a position is of {4 * len(text)} windows, and the slice has {windows}: reconnect")
    return np.unpackbits(packed, count=windows).astype(np.bool_)


def error(word: str, sentence: str = "") -> flight.FlightServerError:
    """An error as the server raises it."""
    return flight.FlightServerError(word, extra_info=json.dumps([word, sentence]).encode())


def error_of(raised: BaseException) -> tuple[str, str]:
    """The word and the sentence of `error` as the client gets it; empty if it is another."""
    try:
        found: Any = json.loads(getattr(raised, "extra_info", None) or b"")
    except ValueError:
        return "", ""
    return (str(found[0]), str(found[1])) if isinstance(found, list) and len(found) == 2 else ("", "")
