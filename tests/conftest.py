"""What many tests need: the folder of trained models and texts, and one seed for every test."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of trained models and real texts beside the repository; the test is skipped where it is missing."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"the folder of models and texts is missing: {folder}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small matrices gain nothing from more threads, and lose much on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any network call fails the test."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError(f"a network call: {arguments}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
