"""A trainer's connection to one server: the three questions, and every failure as one of four.

A `UserError` is for a person to put right; `Lost` passes, so the trainer tries again later; `Unknown` and `Missed` are
answers of the server.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import flight

from panscope.activations.store.layout import StoredColumn
from panscope.config import Config
from panscope.serving import messages
from panscope.serving.protocol import (
    BYE,
    FAILED,
    HELLO,
    MISSED,
    NEXT,
    REFUSED,
    TOKEN_HEADER,
    UNKNOWN,
    Bye,
    Facts,
    Hello,
    Offer,
    Position,
    Ticket,
    decoded,
    encoded,
    error_of,
)
from panscope.serving.server.server import TOKEN_VARIABLE
from panscope.types import UserError

_ADDRESS = re.compile(r"grpc(\+tls)?://.+:\d+")
_ANSWER = 20.0
"""Seconds within which a server answers."""
_FAREWELL = 2.0
"""Seconds for a server to hear that a trainer goes."""
_WINDOW, _SLOWEST = 60.0, 1 << 20
"""Seconds within which a window comes, and bytes a second beyond that."""
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
"""A new connection for each, so that one is tried at once after another was lost; and straight to the server."""
_NO_TLS = "WRONG_VERSION_NUMBER"
_BAD_TLS = ("CERTIFICATE_VERIFY_FAILED", "SSL_ERROR_SSL", "Peer name", "Ssl handshake failed")


class Lost(Exception):
    """The server does not answer, or cannot go on; trying again later may help."""


class Unknown(Exception):
    """The server does not know the trainer: it has to say hello."""


class Missed(Exception):
    """The window is not in memory any more."""


@dataclass(frozen=True)
class Access:
    """What opens the servers' doors."""

    token: str | None = None
    certificate: Path | None = None
    """PEM file with what the servers' certificates are checked against; None takes the system's."""


class Connection:
    """To the server at `address`; a context manager."""

    def __init__(self, address: str, access: Access) -> None:
        """Raises UserError if the address or the certificate cannot be read, and Lost if there is no way there."""
        check_address(address)
        self._address = address
        headers = [(TOKEN_HEADER.encode(), f"Bearer {access.token}".encode())] if access.token else []
        self._headers = headers
        options: dict[str, Any] = {"generic_options": _OPTIONS}
        if access.certificate is not None:
            options["tls_root_certs"] = _read(access.certificate)
        try:
            self._client = flight.FlightClient(address, **options)
        except (pa.ArrowException, flight.FlightError, OSError) as error:
            self._sort(error)

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def hello(self, hello: Hello) -> Facts:
        """What is served there; raises UserError if this trainer is refused."""
        return decoded(Facts, self._action(HELLO, hello, _ANSWER), f"the answer of {self._address}")

    def next(self, position: Position) -> tuple[int, ...]:
        """The windows that can be taken now."""
        answer = self._action(NEXT, position, _ANSWER + position.wait)
        return decoded(Offer, answer, f"the answer of {self._address}").windows

    def bye(self, trainer: str) -> None:
        """This trainer needs nothing more."""
        self._action(BYE, Bye(trainer=trainer), _FAREWELL)

    def window(self, ticket: Ticket, columns: Sequence[StoredColumn], rows: int) -> Iterator[list[NDArray[Any]]]:
        """The messages of a window of that many rows, [n, D] a column each, in the order in which they are stored."""
        size = rows * sum(column.row_bytes for column in columns)
        options = self._call(_WINDOW + size / _SLOWEST)
        try:
            reader = self._client.do_get(flight.Ticket(encoded(ticket)), options)
        except (pa.ArrowException, flight.FlightError, OSError) as error:
            self._sort(error)
        try:
            while (message := self._message(reader)) is not None:
                rows -= len(message)
                yield messages.rows_of(message, columns)
        finally:
            reader.cancel()
        if rows:
            raise Lost("it sent less than a window")

    def _message(self, reader: flight.FlightStreamReader) -> pa.RecordBatch | None:
        """The next one; None after the last."""
        try:
            return reader.read_chunk().data
        except StopIteration:
            return None
        except (pa.ArrowException, flight.FlightError, OSError) as error:
            self._sort(error)

    def _action(self, kind: str, message: Config, seconds: float) -> bytes:
        try:
            (answer,) = self._client.do_action(flight.Action(kind, encoded(message)), self._call(seconds))
        except (pa.ArrowException, flight.FlightError, OSError) as error:
            self._sort(error)
        return answer.body.to_pybytes()

    def _call(self, seconds: float) -> flight.FlightCallOptions:
        return flight.FlightCallOptions(timeout=seconds, headers=self._headers)

    def _sort(self, error: BaseException) -> NoReturn:
        """Raise what an error means."""
        word, sentence = error_of(error)
        if word == REFUSED:
            raise UserError(f"the server {self._address!r} refused this trainer: {sentence}") from None
        if word == UNKNOWN:
            raise Unknown from None
        if word == MISSED:
            raise Missed from None
        if word == FAILED:
            raise Lost(sentence) from None
        if isinstance(error, flight.FlightUnauthenticatedError):
            raise UserError(
                f"the server {self._address!r} refused this trainer: the token is not the server's; set "
                f"{TOKEN_VARIABLE} to what it was started with"
            ) from None
        said = str(error)
        if _NO_TLS in said.upper():
            raise UserError(
                f"the server {self._address!r} does not speak TLS: write its address as grpc://, or start it with "
                "--certificate and --key"
            ) from None
        if any(sign in said for sign in _BAD_TLS):
            raise UserError(
                f"the server {self._address!r} cannot be trusted: its certificate does not match the one given to "
                "check it with, or its host name; set activations.certificate to the right one"
            ) from None
        raise Lost(_short(said)) from None


def check_address(address: str) -> None:
    """Raise UserError if it is not how an address is written."""
    if not _ADDRESS.fullmatch(address):
        raise UserError(f"the server {address!r} is not an address: write it as grpc://host:8815, or grpc+tls://")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"the certificate {str(path)!r} cannot be read ({error.strerror}): give a PEM file") from None


def _short(said: str) -> str:
    """The heart of what gRPC says."""
    said = said.split(". gRPC client debug context")[0].removeprefix("Flight returned ")
    return said.split("last error: ")[-1][:200]
