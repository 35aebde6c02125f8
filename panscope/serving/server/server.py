"""The network side of a server: listening address, token, TLS, and readable errors for each.

Without a token it listens on the loopback interface only, so that other machines cannot connect.
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
    decode,
    encode,
)
from panscope.serving.server.service import Service
from panscope.types import UserError

TOKEN_VARIABLE = "PANSCOPE_TOKEN"
_SHUTDOWN_SECONDS = 5.0
"""Maximum time for responses in progress to complete when a server closes."""


def token_from_environment() -> str | None:
    """The token from the environment; None if it is not set.

    It is never given on a command line, which other users of the machine can see. Raises UserError if it has characters
    that cannot be sent in a header.
    """
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is not None and not (token.isascii() and token.isprintable() and token == token.strip()):
        raise UserError(
            f"{TOKEN_VARIABLE} has a character that cannot be sent: use printable ASCII characters, with no space or "
            "line break at either end"
        )
    return token


@dataclass(frozen=True)
class ListenConfig:
    """Address, token and TLS files of a server."""

    host: str = "127.0.0.1"
    port: int = 8815
    """0 for any free port."""
    token: str | None = None
    """The token that trainers must send; None for no authentication."""
    certificate: Path | None = None
    """PEM file of the TLS certificate; None for no TLS."""
    key: Path | None = None
    """PEM file of the certificate's private key."""

    def check(self) -> None:
        """Raise UserError if the settings are inconsistent or insecure, or if the port is in use."""
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
        """Raise UserError if the port is in use: gRPC would let two servers share it and split the trainers."""
        try:
            kind, _, _, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(kind, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            raise UserError(
                f"the server cannot listen on {self.host}:{self.port} ({error.strerror}): choose another --host or "
                "--port"
            ) from None

    def location(self, port: int) -> str:
        """The address that trainers connect to."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"grpc{'+tls' if self.certificate else ''}://{host}:{port}"


class ActivationServer:
    """A service on the network; it listens from its creation to `close`, or as a context manager."""

    def __init__(self, service: Service, listen: ListenConfig, log: Callable[[str], None]) -> None:
        """Start the service; raises UserError if the settings are inconsistent or it cannot listen there."""
        listen.check()
        if listen.token and not listen.certificate and not _is_loopback(listen.host):
            log(
                "there is no TLS, so the token is sent unencrypted: give --certificate and --key on a network that you "
                "do not trust"
            )
        self._service = service
        self._flight = _start_flight(service, listen, log)
        self.address = listen.location(self._flight.port)
        service.start()

    def close(self) -> None:
        """Stop the service and disconnect trainers."""
        self._service.close()
        shutdown = threading.Thread(target=self._flight.shutdown, daemon=True)  # Blocks on stalled trainers.
        shutdown.start()
        shutdown.join(_SHUTDOWN_SECONDS)

    def __enter__(self) -> "ActivationServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _start_flight(service: Service, listen: ListenConfig, log: Callable[[str], None]) -> "_Flight":
    try:
        pairs = _tls_pairs(listen)
    except OSError as error:
        raise UserError(f"{error.filename!r} cannot be read ({error.strerror}): give PEM files") from None
    middleware = {"token": _TokenCheck(listen.token, log)} if listen.token else None
    try:
        return _Flight(service, listen.location(listen.port), tls_certificates=pairs, middleware=middleware)
    except (OSError, pa.ArrowException) as error:
        what = "its certificate and key" if pairs else "its --host and --port"
        raise UserError(f"the server cannot listen on {listen.location(listen.port)}: check {what} ({error})") from None


def _tls_pairs(listen: ListenConfig) -> list[tuple[bytes, bytes]] | None:
    """Contents of the certificate and key files; None for no TLS."""
    if listen.certificate is None or listen.key is None:
        return None
    return [(listen.certificate.read_bytes(), listen.key.read_bytes())]


class _Flight(flight.FlightServerBase):
    def __init__(self, service: Service, location: str, **options: Any) -> None:
        self._service = service
        super().__init__(location, **options)

    def do_action(self, context: flight.ServerCallContext, action: flight.Action) -> Iterator[flight.Result]:
        body = action.body.to_pybytes()
        return iter([flight.Result(_refusing_bad_requests(lambda: self._answer(action.type, body), self._service))])

    def _answer(self, kind: str, body: bytes) -> bytes:
        if kind == HELLO:
            return encode(self._service.hello(decode(Hello, body, "the hello request")))
        if kind == NEXT:
            return encode(self._service.next(decode(Position, body, "the position")))
        if kind == BYE:
            self._service.bye(decode(Bye, body, "the bye request"))
            return b"{}"
        if kind == HEALTH:
            return encode(self._service.health())
        raise UserError(f"the action {kind!r} is unknown: use one of {HELLO}, {NEXT}, {BYE}, {HEALTH}")

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.FlightDataStream:
        schema, messages = _refusing_bad_requests(
            lambda: self._service.stream(decode(Ticket, ticket.ticket, "the ticket")), self._service
        )
        return flight.GeneratorStream(schema, messages)


def _refusing_bad_requests(answer: Callable[[], Any], service: Service) -> Any:
    """The result of `answer`; a UserError is sent to the trainer as a refusal."""
    try:
        return answer()
    except UserError as error:
        raise service.refuse("", str(error)) from None


class _TokenCheck(flight.ServerMiddlewareFactory):
    """Rejects every call without the token."""

    def __init__(self, token: str, log: Callable[[str], None]) -> None:
        self._expected, self._log = f"Bearer {token}".encode(), log

    def start_call(self, info: flight.CallInfo, headers: dict[str, list[Any]]) -> None:
        given = headers.get(TOKEN_HEADER, [""])[0]
        if not hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._expected):
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
