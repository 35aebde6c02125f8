"""`panscope serve`: one slice of a store, kept in memory window by window, to any number of trainers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from panscope.cli.flags.flag import flag


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
