"""Server and trainer failures, authentication and TLS: no row is lost or repeated, and every error is one message."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pyarrow import flight

from panscope.activations.store.store import Store
from panscope.serving.client.connection import Connection
from panscope.serving.protocol import HEALTH
from panscope.serving.server.server import ListenConfig
from panscope.types import Site, StoppedWaiting, UserError
from tests.support.served_store import (
    MLP,
    RESID,
    TIME_LIMIT,
    check_bits,
    check_once_an_epoch,
    make_store,
    numbers,
    serving,
    take,
    trainer,
)

ROWS = 330
HALVES = (range(160), range(160, ROWS))
_SERVE = """
import sys
from panscope.cli.main import main
sys.argv.insert(1, "serve")
main()
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("stores") / "s", ROWS)


class _Process:
    """`panscope serve` in a subprocess; a context manager."""

    def __init__(self, store: Store, *arguments: object, **environment: str) -> None:
        command = [sys.executable, "-c", _SERVE, store.where, "--window-rows", 32, "--windows", 3, "--grace", 0]
        self.process = subprocess.Popen(
            [str(word) for word in [*command, *arguments]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"COLUMNS": "400"} | environment,
        )
        assert self.process.stdout is not None
        self.lines: list[str] = []
        for line in self.process.stdout:
            self.lines.append(line)
            if "listening on" in line:
                break
        self.address = self.lines[-1].split()[-1]

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send the signal `number` and wait for the process; returns its exit status."""
        self.process.send_signal(number)
        self.lines += self.process.communicate(timeout=TIME_LIMIT)[0].splitlines()
        return self.process.returncode

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_server_killed_again_and_again_loses_and_repeats_no_row(store: Store) -> None:
    port, messages, batches = _free_port(), [], []
    server = _Process(store, "--port", port)
    with trainer([server.address], say=messages.append) as source:
        for count in (9, 3, 2 * ROWS // 7 - 12):
            batches += take(source, count)
            server.kill()
            server = _Process(store, "--port", port)
    server.kill()
    check_once_an_epoch(numbers(batches), range(ROWS))
    check_bits(store, batches)
    assert any("does not answer" in message for message in messages)
    assert any("answers again" in message for message in messages)


def test_a_terminated_server_exits_cleanly_and_logs_its_status(store: Store) -> None:
    with _Process(store, "--port", 0, "--log-every", 0.1) as server, trainer([server.address]) as source:
        take(source, 10)
        assert server.process.stdout is not None
        line = next(line for line in iter(server.process.stdout.readline, "") if "rows/s" in line)
        assert "slice 1/1" in line
        assert server.kill(signal.SIGTERM) == 0


def test_one_of_two_servers_is_killed_and_restarted(store: Store) -> None:
    """Each slice counts its own epochs, and training continues with the rows of the other server."""
    messages, batches = [], []
    second = ("--port", _free_port(), "--slice", "2/2")
    with ExitStack() as stack, serving(store, part="1/2") as first, _Process(store, *second) as dying:
        source = stack.enter_context(trainer([first.address, dying.address], say=messages.append))
        batches += take(source, 30)
        dying.kill()
        while not any("does not answer" in message for message in messages):
            batches.append(next(source))
        batches += take(source, 60)
        epochs = source.state_dict()["slices"]["0-160"]["epoch"]
        stack.enter_context(_Process(store, *second))
        while source.epoch < epochs:
            batches.append(next(source))
        assert any("answers again" in message for message in messages)
    given = numbers(batches)
    for half in HALVES:
        check_once_an_epoch([number for number in given if number in half], half)
    check_bits(store, batches)


def test_a_trainer_starts_before_one_of_its_servers(store: Store) -> None:
    port, messages = _free_port(), []
    late = f"grpc://127.0.0.1:{port}"
    with serving(store, part="1/2") as first, trainer([first.address, late], say=messages.append) as source:
        assert any(late in message for message in messages)
        batches = take(source, 10)
        assert f"rows {len(HALVES[0])} to {ROWS - 1} of {ROWS} are on no server" in " ".join(messages)
        assert set(numbers(batches)) <= set(HALVES[0])
        with serving(store, part="2/2", listen=ListenConfig(port=port)):
            while not set(numbers(batches)) & set(HALVES[1]):
                batches.append(next(source))


def test_the_position_in_an_unavailable_slice_is_kept_in_the_state(store: Store) -> None:
    with serving(store, part="1/2") as first:
        with serving(store, part="2/2") as second, trainer([first.address, second.address]) as source:
            before = take(source, 25)
            state = source.state_dict()
        with trainer([first.address, second.address]) as source:
            source.load_state_dict(state)
            before += take(source, 5)
            state = json.loads(json.dumps(source.state_dict()))
        with serving(store, part="2/2") as second, trainer([first.address, second.address]) as source:
            source.load_state_dict(state)
            after = take(source, 60)
    given = numbers([*before, *after])
    for half in HALVES:
        check_once_an_epoch([number for number in given if number in half], half)


def test_a_server_restarted_with_another_slice_is_refused(store: Store) -> None:
    listen = ListenConfig(port=_free_port())
    with ExitStack() as first:
        first.enter_context(serving(store, listen=listen))
        with trainer([listen.location(listen.port)]) as source:
            take(source, 3)
            first.close()
            with (
                serving(store, listen=listen, part="1/2"),
                pytest.raises(UserError, match="was restarted with another store"),
            ):
                take(source, 2 * ROWS)


def test_a_closed_trainer_disconnects(store: Store) -> None:
    with serving(store) as served:
        with trainer([served.address], trainer="one") as source:
            take(source, 3)
        assert not served.service.health().trainers
    assert "trainer one disconnected" in served.log


def test_inactive_trainers_are_forgotten_and_can_reconnect(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(store, forget=0.3) as served:
        with monkeypatch.context() as silence, trainer([served.address], trainer="one") as source:
            silence.setattr(Connection, "bye", lambda connection, name: None)
            before = take(source, 3)
            state = source.state_dict()
        with trainer([served.address], trainer="two") as other:
            while any(known.name == "one" for known in served.service.health().trainers):
                next(other)
        with trainer([served.address], trainer="one") as source:
            source.load_state_dict(state)
            check_once_an_epoch(numbers([*before, *take(source, 60)]), range(ROWS))
    assert any("trainer one was inactive" in line for line in served.log)


def test_a_trainer_between_two_batches_is_not_forgotten(store: Store) -> None:
    with serving(store, forget=0.3) as served, trainer([served.address], trainer="one") as source:
        next(source)
        with trainer([served.address], trainer="two", batch=1) as other:
            begun = served.service.health().rows_served
            while served.service.health().rows_served < begun + 3 * ROWS:
                next(other)
        assert not any("trainer one was inactive" in line for line in served.log)


REFUSED = [
    ({"weights": "other"}, "are from the model 'fake'"),
    ({"sites": (Site(5, "resid_post"),)}, "the server has no site 'L05.resid_post'"),
    ({"sites": (MLP, RESID)}, "the server has no site 'L01.mlp_out'"),
]


@pytest.mark.parametrize(("wrong", "message"), REFUSED)
def test_a_trainer_of_another_model_or_site_is_refused_on_both_sides(
    store: Store, wrong: dict[str, Any], message: str
) -> None:
    with serving(store, sites=(RESID,)) as served:
        with pytest.raises(UserError, match=message) as caught, trainer([served.address], **wrong):
            pass
        assert "\n" not in str(caught.value)
        assert [line for line in served.log if "refused" in line and message in line]
        assert len([line for line in served.log if "refused" in line]) == 1


@pytest.mark.parametrize("token", [None, "", "wrong", "secret2", "SECRET"])
def test_a_wrong_token_is_refused_on_both_sides(store: Store, token: str | None) -> None:
    listen = ListenConfig(port=0, token="secret")
    with serving(store, listen=listen) as served:
        with pytest.raises(UserError, match="the token does not match the server's") as caught:
            trainer([served.address], token=token)
        assert "secret" not in str(caught.value).replace("secret2", "")
        assert len([line for line in served.log if "refused" in line]) == 1
        with pytest.raises(flight.FlightUnauthenticatedError):
            list(flight.FlightClient(served.address).do_action(flight.Action(HEALTH, b"{}")))
        with trainer([served.address], token="secret") as source:
            take(source, 3)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_other_hosts_need_a_token(store: Store, host: str) -> None:
    with pytest.raises(UserError, match="set PANSCOPE_TOKEN"), serving(store, listen=ListenConfig(host, 0)):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_needs_no_token(store: Store, host: str) -> None:
    with serving(store, listen=ListenConfig(host, 0)) as served, trainer([served.address]) as source:
        take(source, 3)


def test_a_server_with_a_token_listens_on_all_interfaces(store: Store) -> None:
    with serving(store, listen=ListenConfig("0.0.0.0", 0, token="secret")) as served:
        address = served.address.replace("0.0.0.0", "127.0.0.1")
        take(trainer([address], token="secret"), 3)
    assert any("there is no TLS" in line for line in served.log)


def test_two_servers_on_one_port_are_refused(store: Store) -> None:
    with serving(store) as served, pytest.raises(UserError, match="cannot listen on"):
        ListenConfig(port=int(served.address.rpartition(":")[2])).check()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Self-signed, by openssl; the test is skipped where that is missing."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    found = {}
    for name in ("ours", "theirs"):
        found[name] = folder / f"{name}.pem", folder / f"{name}-key.pem"
        command = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
        )
        names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
        files = ["-addext", names, "-out", str(found[name][0]), "-keyout", str(found[name][1])]
        subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return found


def test_rows_are_served_over_tls_with_a_token(store: Store, certificates: dict[str, tuple[Path, Path]]) -> None:
    ours, theirs = certificates["ours"], certificates["theirs"]
    with serving(store, listen=ListenConfig("127.0.0.1", 0, "secret", *ours)) as served:
        assert served.address.startswith("grpc+tls://")
        with trainer([served.address], token="secret", certificate=ours[0]) as source:
            batches = take(source, 50)
        with pytest.raises(UserError, match="cannot be trusted"):
            trainer([served.address], token="secret", certificate=theirs[0])
        with pytest.raises(UserError, match="the token does not match the server's"):
            trainer([served.address], token="public", certificate=ours[0])
    check_once_an_epoch(numbers(batches), range(ROWS))


def test_a_certificate_without_its_key_is_refused(certificates: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    certificate, key = certificates["ours"]
    with pytest.raises(UserError, match="belong together"):
        ListenConfig(certificate=certificate).check()
    store = make_store(tmp_path / "s", ROWS)
    missing = ListenConfig("127.0.0.1", 0, None, tmp_path / "none.pem", key)
    with pytest.raises(UserError, match="cannot be read"), serving(store, listen=missing):
        pass


def test_a_damaged_window_stops_the_server_with_an_error_and_trainers_wait(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", ROWS)
    damaged = tmp_path / "s" / "sites" / str(RESID) / "00003.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    messages, batches = [], []

    def say(message: str) -> None:
        messages.append(message)
        if "waiting until one" in message:
            raise InterruptedError

    with _Process(store, "--port", 0) as server, trainer([server.address], say=say) as source:
        with pytest.raises(InterruptedError):
            while True:
                batches.append(next(source))
        assert server.process.wait(TIME_LIMIT) != 0
        assert server.process.stdout is not None
        assert "00003.safetensors" in server.process.stdout.read()
    assert batches
    assert any("does not answer" in message for message in messages)
    check_bits(make_store(tmp_path / "whole", ROWS), batches)


def test_health_reports_windows_and_trainers(store: Store) -> None:
    with serving(store, windows=3) as served, trainer([served.address], trainer="one") as source:
        take(source, 40)
        (answer,) = flight.FlightClient(served.address).do_action(flight.Action(HEALTH, b""))
        health = json.loads(answer.body.to_pybytes())
    assert health["windows"] == 11
    assert health["failure"] is None
    assert health["rows_per_second"] > 0
    assert health["bytes_served"] == health["rows_served"] * (6 * 2 + 3 * 2 + 24)
    assert 1 <= len(health["resident"]) <= 3
    assert all(window["age"] >= 0 for window in health["resident"])
    (one,) = health["trainers"]
    assert (one["name"], one["lag"]) == ("one", 0)
    assert 8 <= one["windows_had"] <= 11


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"trainer": 3}', b'{"trainer": "x", "epoch": -1}'])
@pytest.mark.parametrize("action", ["hello", "next", "nonsense"])
def test_invalid_requests_are_refused(store: Store, action: str, body: bytes) -> None:
    with serving(store) as served, flight.FlightClient(served.address) as client:
        with pytest.raises(flight.FlightServerError, match="refused"):
            list(client.do_action(flight.Action(action, body)))
        with pytest.raises(flight.FlightServerError, match="refused"):
            client.do_get(flight.Ticket(body)).read_all()


def test_overlapping_slices_and_different_stores_are_refused(store: Store, tmp_path: Path) -> None:
    other = make_store(tmp_path / "s", ROWS, "float32")
    with serving(store, part="1/2") as one, serving(store) as all_of_it, serving(other, part="2/2") as two:
        with pytest.raises(UserError, match="both have row"):
            take(trainer([one.address, all_of_it.address]), 1)
        with pytest.raises(UserError, match="different stores"):
            take(trainer([one.address, two.address]), 1)


def test_addresses_are_checked(store: Store) -> None:
    for addresses, message in (([], "names no server"), (["host:80"], "is not an address"), (["grpc://a"], "is not")):
        with pytest.raises(UserError, match=message):
            trainer(addresses)
    with pytest.raises(UserError, match="no server answered within 0 s"):
        trainer([f"grpc://127.0.0.1:{_free_port()}"], patience=0)


def test_waiting_for_servers_can_be_interrupted(store: Store) -> None:
    """The interrupted batch uses no row."""
    with serving(store, part="1/2") as served:
        source = trainer([served.address])
        batches = take(source, 3)
        state = source.state_dict()
    with source:
        source.stop_when(lambda: True)
        with pytest.raises(StoppedWaiting):
            take(source, len(HALVES[0]))
    with serving(store, part="1/2") as served, trainer([served.address]) as source:
        source.load_state_dict(state)
        batches += take(source, 20)
    check_once_an_epoch(numbers(batches), HALVES[0])
