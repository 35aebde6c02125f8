"""What many tests need: the folder of trained models and texts, and one seed for every test."""

import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest_plugins = ["pytester"]
REPOSITORY = Path(__file__).parent.parent
LOGGING_LIBRARIES = ("transformers", "huggingface_hub", "datasets")
"""Libraries that announce a deprecation in their log, which `filterwarnings` does not see."""


class _Deprecations(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecat" in record.getMessage().lower():
            self.found.append(f"{record.name}: {record.getMessage()}")


@pytest.fixture(autouse=True)
def no_deprecated_use() -> Iterator[None]:
    """A test fails if a library logs that something it was asked for is deprecated."""
    handler, loggers = _Deprecations(), [logging.getLogger(name) for name in LOGGING_LIBRARIES]
    for logger in loggers:
        logger.addHandler(handler)
    yield
    for logger in loggers:
        logger.removeHandler(handler)
    assert not handler.found, handler.found


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
