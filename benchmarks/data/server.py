"""The rate at which one activation server feeds its trainers, against raw TCP over the loopback and a memory copy.

    python -m benchmarks.data.server

Server and trainers are processes of their own, and every window is in memory before a rate is measured. Raw TCP and the
memory copy are measured in the same round, so that ratios are meaningful on a shared machine too. The last lines count
bytes read from disk for each byte of an epoch, when all trainers keep up and when one is slower. Needs openssl for TLS.

Shape letters: B rows of a batch, D width of the site.
"""

import multiprocessing
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from benchmarks.support import machine
from benchmarks.support.command_line import run_command
from benchmarks.support.other_load import OtherLoad
from benchmarks.support.tables import markdown_table, wide_console
from panscope.activations.store.manifest import Manifest, Origin
from panscope.activations.store.store import Store
from panscope.activations.store.windows import Slice
from panscope.activations.store.writer import StoreWriter
from panscope.serving.allocator import keep_large_blocks
from panscope.serving.client.connection import Access
from panscope.serving.client.served_rows import ServedRows, Servers
from panscope.serving.server.server import ActivationServer, ListenConfig
from panscope.serving.server.service import Service, ServiceLimits
from panscope.storage.json_lines import JsonLines
from panscope.types import ActivationBatch, Site

_SITE = Site(0, "resid_post")
_GIB = 2**30
_CHUNK = 1 << 21
"""Bytes of one send over the raw loopback, about the size of a server's message."""
_TOKEN = "a token"
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Options:
    """The rate of one activation server, against raw TCP and a memory copy."""

    width: int = 2304
    """D."""
    batch: int = 4096
    """B."""
    windows: int = 8
    """Windows of the measured rates, all in memory."""
    window_batches: int = 4
    """Batches of a window."""
    trainers: tuple[int, ...] = (1, 4)
    """Numbers of trainers; one measurement for each."""
    gib: float = 4.0
    """GiB over which a rate is measured, all trainers together."""
    repeats: int = 3
    """Rounds; every rate is measured once in each."""
    tls: bool = True
    """Measure with TLS and a token too."""
    read_windows: int = 40
    """Windows of the store for the counts of disk reads, of one batch each."""
    resident: int = 4
    """Windows that the server keeps in memory for those counts."""
    epochs: int = 2
    """Epochs of those counts."""
    pace: float = 0.05
    """Seconds of a batch for a trainer that keeps up."""
    lags: tuple[float, ...] = (1.5, 2.0)
    """How many times as long the slow trainer takes; one count for each value."""
    grace: float = 1.0
    """Seconds for which the server keeps a window for the slow trainer."""
    label: str = ""
    """A note that is written with the results."""
    out: Path = Path("benchmarks/results/server.jsonl")
    """Results are appended to this file."""


def main(options: Options) -> None:
    """Measure, record and print."""
    console, results, lines = wide_console(), JsonLines(options.out), []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    keep_large_blocks()
    with tempfile.TemporaryDirectory() as name:
        for measured in _measured(options, Path(name)):
            lines.append(_setting(options) | measured)
            results.append(lines[-1:])
            console.print(measured, highlight=False)
    console.print(table(lines))


def _setting(options: Options) -> dict[str, Any]:
    asked = {name: value for name, value in asdict(options).items() if name != "out"}
    return {"options": asked, "date": time.strftime("%F"), "machine": machine.facts()}


def _measured(options: Options, folder: Path) -> Iterator[dict[str, Any]]:
    rows = options.windows * options.window_batches * options.batch
    store = _write_store(folder / "rates", rows, options.window_batches * options.batch, options)
    doors = {"plain": ListenConfig(port=0)}
    if options.tls:
        doors["TLS and token"] = ListenConfig("127.0.0.1", 0, _TOKEN, *_certificate(folder))
    for _ in range(options.repeats):
        yield _watched("memory copy", 1, _memory_copy)
        for trainers in options.trainers:
            yield _watched("raw loopback", trainers, lambda n=trainers: _loopback(n, options.gib))
            for name, door in doors.items():
                yield _watched(name, trainers, lambda n=trainers, d=door: _rate(store, d, n, options))
    shutil.rmtree(store)
    store = _write_store(folder / "reads", options.read_windows * options.batch, options.batch, options)
    yield _reads(store, "keep up", [options.pace] * 3, options)
    for lag in options.lags:
        yield _reads(store, f"one {lag:g}x slower", [options.pace, options.pace, lag * options.pace], options)


def _watched(name: str, trainers: int, measure: Any) -> dict[str, Any]:
    load = OtherLoad()
    rate = measure()
    return {"what": name, "trainers": trainers, "gib_per_second": rate, "others": load.share()}


def _memory_copy() -> float:
    """GiB/s of copying 256 MiB into memory that is already allocated; every byte is counted once."""
    source, target = np.ones(1 << 28, dtype=np.uint8), np.zeros(1 << 28, dtype=np.uint8)
    begun = time.perf_counter()
    for _ in range(8):
        np.copyto(target, source)
    return 8 * source.nbytes / _GIB / (time.perf_counter() - begun)


def _loopback(connections: int, gib: float) -> float:
    """GiB/s of plain TCP from this process to as many others as `connections`, all together."""
    size = int(gib * _GIB / connections) // _CHUNK * _CHUNK
    with socket.create_server(("127.0.0.1", 0)) as listener, _children(connections, _receive, listener.getsockname()):
        sockets = [listener.accept()[0] for _ in range(connections)]
        data = memoryview(bytearray(_CHUNK))
        threads = [threading.Thread(target=_send, args=(each, data, size)) for each in sockets]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for each in sockets:
            each.recv(1)
        seconds = time.perf_counter() - begun
        for each, thread in zip(sockets, threads, strict=True):
            thread.join()
            each.close()
    return connections * size / _GIB / seconds


def _send(to: socket.socket, data: memoryview, size: int) -> None:
    for _ in range(size // len(data)):
        to.sendall(data)
    to.shutdown(socket.SHUT_WR)


def _receive(pipe: Connection, address: tuple[str, int]) -> None:
    buffer = bytearray(_CHUNK)
    with socket.create_connection(address) as sender:
        while sender.recv_into(buffer):
            pass
        sender.send(b"!")
        pipe.recv()


def _rate(store: Path, door: ListenConfig, trainers: int, options: Options) -> float:
    """GiB/s of batches that trainers have received, all together, with every window in the server's memory."""
    size = options.batch * options.width * 2
    count = max(1, int(options.gib * _GIB / size / trainers))
    limits = ServiceLimits(window_rows=options.window_batches * options.batch, windows=options.windows)
    warm = options.windows * options.window_batches
    with (
        _children(1, _serve, store, door, limits) as (server,),
        _children(trainers, _train, server.recv(), door, options.batch, warm, count) as pipes,
    ):
        for pipe in pipes:
            pipe.recv()
        for pipe in pipes:
            pipe.send("go")
        times = [pipe.recv() for pipe in pipes]
    return trainers * count * size / _GIB / (max(end for _, end in times) - min(begun for begun, _ in times))


def _reads(store: Path, name: str, paces: Sequence[float], options: Options) -> dict[str, Any]:
    """Bytes read from disk for each byte of an epoch; each trainer has its number of seconds a batch in `paces`."""
    limits = ServiceLimits(window_rows=options.batch, windows=options.resident, grace=options.grace, forget=5.0)
    count = options.epochs * options.read_windows
    with _children(1, _serve, store, ListenConfig(port=0), limits) as (server,):
        address = server.recv()
        with _children(len(paces), _train, address, ListenConfig(), options.batch, 0, count, paces) as pipes:
            for pipe in pipes:
                pipe.recv()
            for pipe in pipes:
                pipe.send("go")
            times = [pipe.recv() for pipe in pipes]
        server.send("health")
        read, served = server.recv()
    data = count * options.batch * (options.width * 2 + 24)
    return {
        "what": name,
        "trainers": len(paces),
        "read_per_data": read / data,
        "served_per_read": served / read,
        "seconds": [end - begun for begun, end in times],
    }


def _serve(pipe: Connection, store: Path, door: ListenConfig, limits: ServiceLimits) -> None:
    keep_large_blocks()
    service = Service(Store.open(store), (_SITE,), Slice(), limits, log=lambda line: None)
    with ActivationServer(service, door, lambda line: None) as server:
        pipe.send(server.address)
        while pipe.recv() == "health":
            health = service.health()
            pipe.send((health.bytes_read, health.bytes_served))


def _train(
    pipe: Connection, address: str, door: ListenConfig, batch: int, warm: int, count: int, paces: Sequence[float] = ()
) -> None:
    """Receive `warm` batches, report it, and on the answer receive `count` more; the n-th process has the n-th pace."""
    torch.set_num_threads(1)
    number = int(_SPAWN.current_process().name)
    access = Access(door.token, door.certificate)
    with ServedRows(Servers((address,), access), (_SITE,), batch=batch, seed=number) as rows:
        for _ in range(warm):
            next(rows)
        pipe.send("ready")
        pipe.recv()
        begun, never = time.monotonic(), threading.Event()
        for done in range(count):
            next(rows)
            if paces:
                never.wait(max(0.0, begun + (done + 1) * paces[number] - time.monotonic()))
        pipe.send((begun, time.monotonic()))
    pipe.recv()


@contextmanager
def _children(count: int, work: Any, *arguments: Any) -> Iterator[list[Connection]]:
    """Start `count` processes that run `work(pipe, *arguments)`; yields this end of their pipes, and ends them."""
    pipes = [_SPAWN.Pipe() for _ in range(count)]
    processes = [
        _SPAWN.Process(target=work, args=(theirs, *arguments), name=str(number), daemon=True)
        for number, (_, theirs) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        yield [ours for ours, _ in pipes]
        for ours, _ in pipes:
            ours.send("end")
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()


def _write_store(folder: Path, rows: int, shard_rows: int, options: Options) -> Path:
    """A store of random rows of one site in bfloat16; returns its folder."""
    fields: dict[str, Any] = {"model": "random", "revision": None, "weights": "none", "tokenizer": "none"}
    fields |= {"model_dtype": "float32", "attention": "none", "data": {}, "special_tokens": "drop", "seed": 0}
    manifest = Manifest(
        origin=Origin(**fields, wanted_rows=rows, bucket_rows=options.batch),
        dtype="bfloat16",
        shard_rows=shard_rows,
        block_rows=options.batch,
        versions={},
    )
    StoreWriter(folder, manifest, {_SITE: options.width}).write(_RandomRows(rows, options))
    return folder


class _RandomRows:
    """Blocks of one batch, always the same random numbers, so that no time is spent on making them."""

    device = torch.device("cpu")

    def __init__(self, rows: int, options: Options) -> None:
        self._rows, self._next, self._batch = rows, 0, options.batch
        self._x = torch.randn(options.batch, options.width, generator=torch.Generator().manual_seed(0))

    def __iter__(self) -> "_RandomRows":
        return self

    def __next__(self) -> ActivationBatch:
        if self._next >= self._rows:
            raise StopIteration
        number = torch.arange(self._next, self._next + self._batch)
        self._next += self._batch
        return ActivationBatch({_SITE: self._x}, number, number, number)

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._next = state["next"]


def _certificate(folder: Path) -> tuple[Path, Path]:
    """The files of a self-signed certificate and its key, made by openssl."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return certificate, key


def table(lines: list[dict[str, Any]]) -> Table:
    """A row for each measurement, with the values of all rounds side by side."""
    columns = ("", "trainers", "GiB/s", "of raw loopback", "read / epoch", "served / read", "load of others")
    shown = markdown_table(columns)
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["what"], line["trainers"]), []).append(line)
    for (what, trainers), found in groups.items():
        raw = groups.get(("raw loopback", trainers), [])
        rates = [line["gib_per_second"] for line in found if "gib_per_second" in line]
        shares = (
            [r / line["gib_per_second"] for r, line in zip(rates, raw, strict=False)] if what != "memory copy" else []
        )
        shown.add_row(
            what,
            str(trainers),
            " ".join(f"{rate:.2f}" for rate in rates),
            " ".join(f"{share:.0%}" for share in shares),
            " ".join(f"{line['read_per_data']:.2f}" for line in found if "read_per_data" in line),
            " ".join(f"{line['served_per_read']:.2f}" for line in found if "served_per_read" in line),
            " ".join(f"{line['others']:.0%}" for line in found if line.get("others") is not None),
        )
    return shown


if __name__ == "__main__":
    run_command(main, Options)
