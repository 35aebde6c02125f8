"""The network side of a server: addresses, token, TLS, and what goes wrong in words.

Without a token it listens on the loopback interface only, so that nobody else's machine can ask.
"""

import hmac
import ipaddress
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import flight

from panscope.serving.protocol import (
    BYE,
    HEALTH,
    HELLO,
    NEXT,
    TOKEN_HEADER,
    Bye,
    Hello,
    Position,
    Ticket,
    decoded,
    encoded,
)
from panscope.serving.server.service import Service
from panscope.types import UserError

TOKEN_VARIABLE = "PANSCOPE_TOKEN"
_ENDING = 5.0
"""Seconds for answers that are on their way when a server ends."""


def token_of_environment() -> str | None:
    """The token, which is never given on a command line, as those can be seen by everybody; None if there is none.

    Raises UserError if it has characters that cannot be sent.
    """
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is not None and not (token.isascii() and token.isprintable() and token == token.strip()):
        raise UserError(
            f"{TOKEN_VARIABLE} has a character that cannot be sent: use letters, digits and signs of ASCII, with no "
            "space or line end around them"
        )
    return token


@dataclass(frozen=True)
class ListenConfig:
    """Where a server listens, and whom it lets in."""

    host: str = "127.0.0.1"
    port: int = 8815
    """0 takes a free one."""
    token: str | None = None
    certificate: Path | None = None
    """A PEM file; the next one its key."""
    key: Path | None = None

    def check(self) -> None:
        """Raise UserError if these do not go together."""
        if (self.certificate is None) != (self.key is None):
            raise UserError("--certificate and --key belong together: give both, or neither for no TLS")
        if self.token is None and not _is_loopback(self.host):
            raise UserError(
                f"--host {self.host!r} can be reached from other machines, and there is no token: set "
                f"{TOKEN_VARIABLE} to a secret on the server and its trainers, or listen on 127.0.0.1"
            )
        if self.port:
            self._check_free()

    def _check_free(self) -> None:
        """Two servers could listen on one port, and each would get some of the trainers."""
        try:
            kind, _, _, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(kind, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            raise UserError(
                f"{self.host}:{self.port} cannot be listened on ({error.strerror}): choose another --host or --port"
            ) from None

    def location(self, port: int) -> str:
        """As an address for trainers."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"grpc{'+tls' if self.certificate else ''}://{host}:{port}"


class ActivationServer:
    """A service behind a door; a context manager that listens from the beginning."""

    def __init__(self, service: Service, door: ListenConfig, log: Callable[[str], None]) -> None:
        """Raises UserError if it cannot listen there."""
        door.check()
        if door.token and not door.certificate and not _is_loopback(door.host):
            log(
                "the token is sent as it is, since there is no TLS: give --certificate and --key on a network of others"
            )
        self._service = service
        self._flight = _listening(service, door, log)
        self.address = door.location(self._flight.port)
        service.start()

    def close(self) -> None:
        """Let trainers go and end."""
        self._service.close()
        ending = threading.Thread(target=self._flight.shutdown, daemon=True)  # Waits for trainers that take nothing.
        ending.start()
        ending.join(_ENDING)

    def __enter__(self) -> "ActivationServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _listening(service: Service, door: ListenConfig, log: Callable[[str], None]) -> "_Flight":
    try:
        pairs = [(door.certificate.read_bytes(), door.key.read_bytes())] if door.certificate and door.key else None
    except OSError as error:
        raise UserError(f"{error.filename!r} cannot be read ({error.strerror}): give PEM files") from None
    middleware = {"token": _Token(door.token, log)} if door.token else None
    try:
        return _Flight(service, door.location(door.port), tls_certificates=pairs, middleware=middleware)
    except (OSError, pa.ArrowException) as error:
        what = "its certificate and key" if pairs else "its --host and --port"
        raise UserError(f"the server cannot listen on {door.location(door.port)}: check {what} ({error})") from None


class _Flight(flight.FlightServerBase):
    def __init__(self, service: Service, location: str, **options: Any) -> None:
        self._service = service
        super().__init__(location, **options)

    def do_action(self, context: flight.ServerCallContext, action: flight.Action) -> Iterator[flight.Result]:
        body = action.body.to_pybytes()
        return iter([flight.Result(_answered(lambda: self._answer(action.type, body), self._service))])

    def _answer(self, kind: str, body: bytes) -> bytes:
        if kind == HELLO:
            return encoded(self._service.hello(decoded(Hello, body, "a hello")))
        if kind == NEXT:
            return encoded(self._service.next(decoded(Position, body, "a position")))
        if kind == BYE:
            self._service.bye(decoded(Bye, body, "a farewell"))
            return b"{}"
        if kind == HEALTH:
            return encoded(self._service.health())
        raise UserError(f"the action {kind!r} is unknown: use one of {HELLO}, {NEXT}, {BYE}, {HEALTH}")

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.FlightDataStream:
        schema, messages = _answered(
            lambda: self._service.stream(decoded(Ticket, ticket.ticket, "a ticket")), self._service
        )
        return flight.GeneratorStream(schema, messages)


def _answered(answer: Callable[[], Any], service: Service) -> Any:
    """What `answer` gives; a UserError is one of the trainer's."""
    try:
        return answer()
    except UserError as error:
        raise service.refuse("", str(error)) from None


class _Token(flight.ServerMiddlewareFactory):
    """Lets nobody in without the token."""

    def __init__(self, token: str, log: Callable[[str], None]) -> None:
        self._wanted, self._log = f"Bearer {token}".encode(), log

    def start_call(self, info: flight.CallInfo, headers: dict[str, list[Any]]) -> None:
        given = headers.get(TOKEN_HEADER, [""])[0]
        if not hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._wanted):
            why = "the token is wrong" if given else "there is no token"
            self._log(f"refused a trainer: {why}")
            raise flight.FlightUnauthenticatedError(why)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
