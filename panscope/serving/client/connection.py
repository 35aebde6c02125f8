"""A trainer's connection to one server, with every failure translated into one of four exceptions.

`UserError` has to be fixed by the user. `ConnectionLost` is temporary: the trainer retries later. `UnknownTrainer` and
`WindowMissed` are regular answers of the server.
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
    Hello,
    Offer,
    Position,
    ServerInfo,
    Ticket,
    decode,
    encode,
    parse_error,
)
from panscope.serving.server.server import TOKEN_VARIABLE
from panscope.types import UserError

_ADDRESS = re.compile(r"grpc(\+tls)?://.+:\d+")
_ANSWER_SECONDS = 20.0
"""Timeout of a request."""
_BYE_SECONDS = 2.0
"""Timeout of the bye request."""
_WINDOW_SECONDS, _MIN_BYTES_PER_SECOND = 60.0, 1 << 20
"""The timeout for receiving a window is the former, plus the window's size divided by the latter."""
_CHANNEL_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
"""No shared subchannels, whose backoff would delay reconnecting, and no HTTP proxy."""
_SIGN_OF_NO_TLS = "WRONG_VERSION_NUMBER"
_SIGNS_OF_BAD_CERTIFICATE = ("CERTIFICATE_VERIFY_FAILED", "SSL_ERROR_SSL", "Peer name", "Ssl handshake failed")


class ConnectionLost(Exception):
    """The server does not answer or has failed; retrying later may succeed."""


class UnknownTrainer(Exception):
    """The server does not know the trainer, which has to reconnect."""


class WindowMissed(Exception):
    """The window is no longer in the server's memory."""


@dataclass(frozen=True)
class Access:
    """Credentials for the servers."""

    token: str | None = None
    certificate: Path | None = None
    """PEM file of the certificates to trust; None for the system's."""


class Connection:
    """A connection to the server at `address`; a context manager."""

    def __init__(self, address: str, access: Access) -> None:
        """Raises UserError if the address or the certificate is invalid, and ConnectionLost if it cannot connect."""
        check_address(address)
        self._address = address
        headers = [(TOKEN_HEADER.encode(), f"Bearer {access.token}".encode())] if access.token else []
        self._headers = headers
        options: dict[str, Any] = {"generic_options": _CHANNEL_OPTIONS}
        if access.certificate is not None:
            options["tls_root_certs"] = _read(access.certificate)
        try:
            self._client = flight.FlightClient(address, **options)
        except (pa.ArrowException, flight.FlightError, OSError) as error:
            self._raise_translated(error)

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def hello(self, hello: Hello) -> ServerInfo:
        """Register this trainer; returns what is served and raises UserError if the trainer is refused."""
        return decode(ServerInfo, self._action(HELLO, hello, _ANSWER_SECONDS), f"the answer of {self._address}")

    def next(self, position: Position) -> tuple[int, ...]:
        """The windows that can be fetched now."""
        answer = self._action(NEXT, position, _ANSWER_SECONDS + position.wait)
        return decode(Offer, answer, f"the answer of {self._address}").windows

    def bye(self, trainer: str) -> None:
        """Unregister this trainer."""
        self._action(BYE, Bye(trainer=trainer), _BYE_SECONDS)

    def window(self, ticket: Ticket, columns: Sequence[StoredColumn], rows: int) -> Iterator[list[NDArray[Any]]]:
        """Fetch a window of `rows` rows: [n, D] per column for each message, in stored order."""
        size = rows * sum(column.row_bytes for column in columns)
        options = self._call_options(_WINDOW_SECONDS + size / _MIN_BYTES_PER_SECOND)
        try:
            reader = self._client.do_get(flight.Ticket(encode(ticket)), options)
        except (pa.ArrowException, flight.FlightError, OSError) as error:
            self._raise_translated(error)
        try:
            while (message := self._next_message(reader)) is not None:
                rows -= len(message)
                yield messages.message_rows(message, columns)
        finally:
            reader.cancel()
        if rows:
            raise ConnectionLost("the server sent an incomplete window")

    def _next_message(self, reader: flight.FlightStreamReader) -> pa.RecordBatch | None:
        """The next message; None after the last."""
        try:
            return reader.read_chunk().data
        except StopIteration:
            return None
        except (pa.ArrowException, flight.FlightError, OSError) as error:
            self._raise_translated(error)

    def _action(self, kind: str, message: Config, seconds: float) -> bytes:
        try:
            (answer,) = self._client.do_action(flight.Action(kind, encode(message)), self._call_options(seconds))
        except (pa.ArrowException, flight.FlightError, OSError) as error:
            self._raise_translated(error)
        return answer.body.to_pybytes()

    def _call_options(self, seconds: float) -> flight.FlightCallOptions:
        return flight.FlightCallOptions(timeout=seconds, headers=self._headers)

    def _raise_translated(self, error: BaseException) -> NoReturn:
        """Raise the exception that `error` stands for."""
        code, message = parse_error(error)
        if code == REFUSED:
            raise UserError(f"the server {self._address!r} refused this trainer: {message}") from None
        if code == UNKNOWN:
            raise UnknownTrainer from None
        if code == MISSED:
            raise WindowMissed from None
        if code == FAILED:
            raise ConnectionLost(message) from None
        if isinstance(error, flight.FlightUnauthenticatedError):
            raise UserError(
                f"the server {self._address!r} refused this trainer: the token does not match the "
                f"server's; set {TOKEN_VARIABLE} to the token that the server was started with"
            ) from None
        text = str(error)
        if _SIGN_OF_NO_TLS in text.upper():
            raise UserError(
                f"the server {self._address!r} does not use TLS: write its address as grpc://, or start it with "
                "--certificate and --key"
            ) from None
        if any(sign in text for sign in _SIGNS_OF_BAD_CERTIFICATE):
            raise UserError(
                f"the server {self._address!r} cannot be trusted: its certificate does not match the trusted one, or "
                "its host name; set activations.certificate to the right file"
            ) from None
        raise ConnectionLost(_shortened(text)) from None


def check_address(address: str) -> None:
    """Raise UserError if `address` is not of the form grpc://host:port or grpc+tls://host:port."""
    if not _ADDRESS.fullmatch(address):
        raise UserError(
            f"the server {address!r} is not an address: write it as grpc://host:8815 or grpc+tls://host:8815"
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"the certificate {str(path)!r} cannot be read ({error.strerror}): give a PEM file") from None


def _shortened(text: str) -> str:
    """The informative part of a gRPC error text."""
    text = text.split(". gRPC client debug context")[0].removeprefix("Flight returned ")
    return text.split("last error: ")[-1][:200]
