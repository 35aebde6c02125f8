"""The tiny language model with its text, and the command line called in this process."""

import sys
from pathlib import Path

import pytest

from panscope.cli.main import main
from panscope.runs import training
from tests.support.tiny_lm import CALIBRATION_ROWS, Call, Command, Tiny, save_model, write_text


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    save_model(folder / "lm", spoilt=False)
    save_model(folder / "spoilt", spoilt=True)
    write_text(folder / "text.jsonl", 300, seed=0)
    return Tiny(folder / "lm", folder / "spoilt", folder / "text.jsonl")


@pytest.fixture
def panscope(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Calls the command line in an empty folder of its own; an exception that is not an exit comes through."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(training, "CALIBRATION_ROWS", CALIBRATION_ROWS)

    def call(*arguments: object) -> Call:
        monkeypatch.setattr(sys, "argv", ["panscope", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        seen = capsys.readouterr()
        status = caught.value.code
        return Call(status if isinstance(status, int) else 0 if status is None else 1, seen.out, seen.err)

    return call
