"""`panscope serve`: one slice of a store, kept in memory window by window, to any number of trainers."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from panscope.activations.store.opening import open_store
from panscope.activations.store.windows import Slice
from panscope.cli.flags import flag
from panscope.cli.units import in_bytes
from panscope.runs.shutdown import StopRequest
from panscope.serving.allocator import keep_large_blocks
from panscope.serving.server.server import ActivationServer, ListenConfig, token_of_environment
from panscope.serving.server.service import Service, ServiceLimits
from panscope.types import Site, UserError

_GIB = 2**30
_MEMORY_SHARE = 0.8
"""Of a machine's memory, what windows may take."""


@dataclass(frozen=True)
class Serve:
    """Serve stored activations to trainers on other machines; each server has a slice of the rows.

    For example
      panscope serve STORE                                                to trainers on this machine
      PANSCOPE_TOKEN=... panscope serve STORE --slice 2/8 --host 0.0.0.0 --certificate c.pem --key k.pem

    A trainer takes its rows from servers by two lines under [activations] in its suite file
      source = "server"
      servers = ["grpc+tls://host1:8815", "grpc+tls://host2:8815"]
    """

    store: Annotated[str, tyro.conf.Positional, flag("STORE")]
    """The folder that panscope collect made, or an address such as s3://bucket/prefix."""
    sites: Annotated[tuple[str, ...], flag("SITE ...")] = ()
    """Sites such as L03.resid_post; all of the store if none is given. Only these are read from disk."""
    slice: Annotated[str, flag("I/N")] = "1/1"
    """Which slice of the rows, the second of eight being 2/8."""
    host: Annotated[str, flag("HOST")] = "127.0.0.1"
    """Where to listen; other than on this machine only with a token in the environment variable PANSCOPE_TOKEN."""
    port: Annotated[int, flag("PORT")] = 8815
    """0 takes a free one."""
    window_rows: Annotated[int, flag("N")] = 65_536
    """Rows of a window: what is read, kept and shuffled as a whole."""
    windows: Annotated[int, flag("N")] = 8
    """Windows in memory at a time."""
    grace: Annotated[float, flag("SECONDS")] = 10.0
    """How long a window stays for trainers that lag, while others have nothing left to take."""
    forget: Annotated[float, flag("SECONDS")] = 60.0
    """After how long a trainer that says nothing is forgotten."""
    certificate: Annotated[Path | None, flag("FILE")] = None
    """PEM file of the certificate, for TLS."""
    key: Annotated[Path | None, flag("FILE")] = None
    """PEM file of its key."""
    cache: Annotated[Path | None, flag("FOLDER")] = None
    """Where files of a store that is an address are kept; by default a folder of the user's caches."""
    cache_gib: Annotated[float, flag("GIB")] = 100.0
    """At most so much of them."""
    log_every: Annotated[float, flag("SECONDS")] = 60.0
    """How often to say how it goes."""

    def run(self, console: Console) -> int:
        """Serve until it is stopped; the exit status."""
        self._check()
        keep_large_blocks()
        log = _log_on(console)
        service = self._service(log)
        ended = threading.Event()
        service.on_failure = ended.set
        door = ListenConfig(self.host, self.port, token_of_environment(), self.certificate, self.key)
        with StopRequest(ended.set), ActivationServer(service, door, log) as server:
            log(f"listening on {server.address}")
            while not ended.wait(self.log_every):
                log(service.health().line())
        if service.failure is not None:
            raise service.failure
        return 0

    def _service(self, log: Callable[[str], None]) -> Service:
        limits = ServiceLimits(window_rows=self.window_rows, windows=self.windows, grace=self.grace, forget=self.forget)
        store = open_store(self.store, cache=self.cache, cache_bytes=round(self.cache_gib * _GIB))
        sites = [Site.parse(name) for name in self.sites] or store.sites
        service = Service(store, sites, Slice.parse(self.slice), limits, log=log)
        windows, size = len(service.windows), service.window_bytes
        held = min(windows, self.windows)
        _check_memory(held * size)
        log(
            f"slice {self.slice} of {store.where}: {service.windows.rows:,} rows of {', '.join(map(str, sites))} in "
            f"{windows} windows of at most {in_bytes(size)}; at most {held} in memory, {in_bytes(held * size)}"
        )
        return service

    def _check(self) -> None:
        for name, least in (("window_rows", 1), ("windows", 1), ("grace", 0.0), ("forget", 1.0), ("log_every", 0.1)):
            value = getattr(self, name)
            if not value >= least:
                raise UserError(f"--{name.replace('_', '-')} {value} is too little: give at least {least:g}")
        if not 0 <= self.port < 1 << 16:
            raise UserError(f"--port {self.port} is not a port: give 0 to 65535")


def _check_memory(needed: int) -> None:
    """Raise UserError if the windows take most of this machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > _MEMORY_SHARE * memory:
        raise UserError(
            f"--windows and --window-rows make {in_bytes(needed)} of rows in memory, and this machine has "
            f"{in_bytes(memory)}: lower one of them, or serve fewer --sites"
        )


def _log_on(console: Console) -> Callable[[str], None]:
    """Print lines with the time in front."""

    def log(line: str) -> None:
        console.print(f"{time.strftime('%T')} {line}", markup=False, highlight=False, soft_wrap=True)

    return log
