"""The stage that serves one slice of a store to any number of trainers, window by window (Gemma Scope, 3.3)."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from panscope.activations.store.opening import open_store
from panscope.activations.store.windows import Slice
from panscope.runs.shutdown import StopRequest
from panscope.serving.allocator import keep_large_blocks
from panscope.serving.server.server import ActivationServer, ListenConfig, token_from_environment
from panscope.serving.server.service import Service, ServiceLimits
from panscope.types import Site, UserError

_GIB = 2**30
_MEMORY_SHARE = 0.8
"""Of a machine's memory, what windows may take."""


@dataclass(frozen=True)
class ServeOptions:
    """Which rows are served, to whom, and how much memory they may take. Raises UserError for values out of range."""

    sites: tuple[str, ...] = ()
    """Sites such as L03.resid_post; all of the store if none is given. Only these are read from disk."""
    slice: str = "1/1"
    """Which slice of the rows, the second of eight being 2/8."""
    host: str = "127.0.0.1"
    """Where to listen; other than on this machine only with a token in the environment variable PANSCOPE_TOKEN."""
    port: int = 8815
    """0 takes a free one."""
    window_rows: int = 65_536
    """Rows of a window: what is read, kept and shuffled as a whole."""
    windows: int = 8
    """Windows in memory at a time."""
    grace: float = 10.0
    """Seconds that a window stays for trainers that lag, while others have nothing left to take."""
    forget: float = 60.0
    """Seconds after which a trainer that sends nothing is forgotten."""
    certificate: Path | None = None
    """PEM file of the certificate, for TLS."""
    key: Path | None = None
    """PEM file of its key."""
    cache: Path | None = None
    """Where files of a store that is an address are kept; None for a folder of the user's caches."""
    cache_gib: float = 100.0
    """Size of that cache at most, in GiB."""

    def __post_init__(self) -> None:
        for name, least in (("window_rows", 1), ("windows", 1), ("grace", 0.0), ("forget", 1.0)):
            value = getattr(self, name)
            if not value >= least:
                raise UserError(f"{name.replace('_', '-')} is {value}: give at least {least:g}")
        if not 0 <= self.port < 1 << 16:
            raise UserError(f"port is {self.port}: give 0 to 65535")


def open_server(store: str, options: ServeOptions, log: Callable[[str], None]) -> ActivationServer:
    """A server that listens; `log` is told what it does. Raises UserError where the rows do not fit into memory."""
    return _listening(_service(store, options, log), options, log)


def serve_until_stopped(store: str, options: ServeOptions, log: Callable[[str], None], *, log_every: float) -> None:
    """Serve until a signal stops it, with a line on its health every so many seconds; raises what ended the service."""
    service, ended = _service(store, options, log), threading.Event()
    service.on_failure = ended.set
    with StopRequest(ended.set), _listening(service, options, log) as server:
        log(f"listening on {server.address}")
        while not ended.wait(log_every):
            log(service.health().line())
    if service.failure is not None:
        raise service.failure


def _listening(service: Service, options: ServeOptions, log: Callable[[str], None]) -> ActivationServer:
    listen = ListenConfig(options.host, options.port, token_from_environment(), options.certificate, options.key)
    return ActivationServer(service, listen, log)


def _service(address: str, options: ServeOptions, log: Callable[[str], None]) -> Service:
    keep_large_blocks()
    limits = ServiceLimits(
        window_rows=options.window_rows, windows=options.windows, grace=options.grace, forget=options.forget
    )
    store = open_store(address, cache=options.cache, cache_bytes=round(options.cache_gib * _GIB))
    sites = [Site.parse(name) for name in options.sites] or store.sites
    service = Service(store, sites, Slice.parse(options.slice), limits, log=log)
    windows, size = len(service.windows), service.window_bytes
    held = min(windows, options.windows)
    _check_memory(held * size)
    log(
        f"slice {options.slice} of {store.where}: {service.windows.rows:,} rows of {', '.join(map(str, sites))} in "
        f"{windows} windows of at most {size / _GIB:.3g} GiB; at most {held} in memory, {held * size / _GIB:.3g} GiB"
    )
    return service


def _check_memory(needed: int) -> None:
    """Raise UserError if the windows take most of this machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > _MEMORY_SHARE * memory:
        raise UserError(
            f"windows and window-rows make {needed / _GIB:.1f} GiB of rows in memory, and this machine has "
            f"{memory / _GIB:.1f} GiB: lower one of them, or serve fewer sites"
        )
