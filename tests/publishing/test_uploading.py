"""Sending to a hub that fails: what is there is not sent again, nothing is committed twice, and no token is said."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from panscope.events import Reporter
from panscope.publishing import hub_upload as uploading
from panscope.publishing.hub_upload import Sent, check_repository, send
from panscope.types import UserError
from tests.support.hearing import Heard
from tests.support.stand_in_hub import TOKEN, Fault, Repository, StandInHub
from tests.support.stand_in_xet import PLAIN, StandInXet

# huggingface_hub's own way to send a file is one that its HTTP client would rather not see.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
NAME = "me/coders"
CODERS = 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five coders of one large and one small file each, a figure and a card."""
    folder = tmp_path / "folder"
    generator = torch.Generator().manual_seed(0)
    for number in range(CODERS):
        (folder / f"coder{number}").mkdir(parents=True)
        save_file({"w": torch.randn(3000, generator=generator)}, folder / f"coder{number}" / "w.safetensors")
        (folder / f"coder{number}" / "cfg.json").write_text(f'{{"number": {number}}}')
    (folder / "figure.svg").write_text("<svg/>")
    (folder / "README.md").write_text("---\ntags:\n  - panscope\n---\n# Coders\n")
    return folder


@pytest.fixture
def two_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """One coder a commit."""
    monkeypatch.setattr(uploading, "FILES_A_COMMIT", 2)


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def held(hub: StandInHub) -> dict[str, bytes]:
    return {path: found for path, (found, _) in hub.repositories[NAME].files.items()}


def sent(folder: Path, *, private: bool = False) -> Sent:
    return send(folder, NAME, private=private, reporter=Reporter())


def test_everything_arrives_and_the_card_comes_last(hub: StandInHub, folder: Path, two_a_commit: None):
    heard = Heard()
    assert send(folder, NAME, private=False, reporter=heard) == Sent(f"{hub.endpoint}/{NAME}", 12, 0)
    assert heard.said == [f"sending 2 files, commit {number} of 6" for number in range(1, 7)]
    assert held(hub) == content(folder)
    assert hub.puts() == CODERS
    commits = hub.repositories[NAME].commits
    assert [len(commit) for commit in commits] == [2] * 6
    assert commits[-1] == ["figure.svg", "README.md"]
    assert not hub.repositories[NAME].private


def test_a_second_time_nothing_is_sent(hub: StandInHub, folder: Path):
    sent(folder)
    before = len(hub.requests)
    assert sent(folder) == Sent(f"{hub.endpoint}/{NAME}", 0, 12)
    assert [method for method, _, _ in hub.requests[before:]] == ["POST", "GET"], "make it, and list its files"
    assert len(hub.repositories[NAME].commits) == 1


def test_only_what_changed_is_sent(hub: StandInHub, folder: Path):
    sent(folder)
    save_file({"w": torch.ones(3000)}, folder / "coder3" / "w.safetensors")  # of the same size
    (folder / "coder1" / "cfg.json").write_text('{"number": 7}')  # of the same size too
    assert sent(folder).files == 2
    assert hub.repositories[NAME].commits[1] == ["coder1/cfg.json", "coder3/w.safetensors"]
    assert hub.puts() == CODERS + 1
    assert held(hub) == content(folder)


def test_what_others_put_there_stays(hub: StandInHub, folder: Path):
    hub.repositories[NAME] = Repository(files={"notes.txt": (b"mine", False)})
    sent(folder)
    assert held(hub) == content(folder) | {"notes.txt": b"mine"}


@pytest.mark.parametrize("how", ["500", "drop"])
def test_the_card_that_is_there_is_asked_for_again(hub: StandInHub, folder: Path, how: str):
    sent(folder)
    (folder / "README.md").write_text("---\ntags:\n  - panscope\n---\n# More coders\n")
    hub.faults = [Fault("HEAD", "/resolve/", how, times=2), Fault("GET", "/resolve/", how)]
    assert sent(folder).files == 1
    assert held(hub) == content(folder)


@pytest.mark.parametrize("how", ["500", "503", "429", "drop", "lose"])
@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("POST", "/api/repos/create"),
        ("GET", "/tree/"),
        ("POST", "/preupload/"),
        ("POST", "/objects/batch"),
        ("PUT", "/large/"),
        ("POST", "/commit/"),
        ("POST", "/api/validate-yaml"),
    ],
)
def test_a_fault_that_passes_costs_nothing(
    hub: StandInHub, folder: Path, two_a_commit: None, method: str, part: str, how: str
):
    hub.faults = [Fault(method, part, how)]
    sent(folder)
    assert not hub.faults[0].times, "it happened"
    assert held(hub) == content(folder)
    commits = hub.repositories[NAME].commits
    assert len([path for commit in commits for path in commit]) == 12, "no file is committed twice"
    assert hub.puts() == CODERS + (part == "/large/"), "no large file is sent twice, but for the one that failed"


def test_after_giving_up_it_goes_on_where_it_was(hub: StandInHub, folder: Path, two_a_commit: None):
    hub.faults = [Fault("PUT", "/large/", "drop", times=10_000, after=2)]
    with pytest.raises(UserError, match=r"publishing to 'me/coders' failed 5 times: .*continues from there"):
        sent(folder)
    assert sorted(held(hub)) == sorted(f"coder{n}/{file}" for n in (0, 1) for file in ("cfg.json", "w.safetensors"))
    hub.faults = []
    before = hub.puts()
    assert sent(folder).there == 4
    assert hub.puts() == before + 3
    assert held(hub) == content(folder)


def test_large_files_of_a_commit_that_failed_are_not_sent_again(hub: StandInHub, folder: Path):
    hub.faults = [Fault("POST", "/commit/", "500", times=uploading.ATTEMPTS)]
    with pytest.raises(UserError, match="500"):
        sent(folder)
    assert held(hub) == {} and hub.puts() == CODERS
    assert sent(folder).files == 12
    assert hub.puts() == CODERS
    assert held(hub) == content(folder)


KILLED = """
    import sys
    from pathlib import Path
    from panscope.events import Reporter
    from panscope.publishing import hub_upload as uploading
    uploading.FILES_A_COMMIT = 2
    print(uploading.send(Path(sys.argv[1]), "me/coders", private=False, reporter=Reporter()))
"""


def started(hub: StandInHub, folder: Path, home: Path, **variables: str) -> subprocess.Popen[str]:
    """A process of its own that sends the folder, as it is for a user whose home is `home`."""
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(home), **variables}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_killed_process_loses_no_more_than_it_was_at(hub: StandInHub, folder: Path, tmp_path: Path):
    """SIGKILL in the midst of the fourth coder's large file; the command is then given again."""
    process = started(hub, folder, tmp_path, HF_HUB_DISABLE_XET="1")
    hub.faults = [Fault("PUT", "/large/", lambda: process.send_signal(signal.SIGKILL), after=3)]
    said, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, said
    assert len(hub.repositories[NAME].commits) == 3
    assert TOKEN not in said
    before = hub.puts()
    assert sent(folder) == Sent(f"{hub.endpoint}/{NAME}", 6, 6)
    assert hub.puts() == before + 2
    assert held(hub) == content(folder)


def test_large_files_go_by_xet_where_nothing_else_is_said(hub: StandInHub, folder: Path, tmp_path: Path):
    """As every user has it; what the storage has of a commit that failed is not sent again."""
    hub.xet = StandInXet(hub.received)
    hub.faults = [Fault("POST", "/commit/", "403")]
    for status, last in ((1, "use one with write access"), (0, "files=12")):
        process = started(hub, folder, tmp_path, HF_HUB_DISABLE_XET="0", **PLAIN)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == status and last in said.splitlines()[-1] and TOKEN not in said, said
        if status:
            assert list(hub.received.values()) == [content(folder)["coder0/w.safetensors"]] and not held(hub)
    assert held(hub) == content(folder)
    assert sum("/xorbs/" in path for _, path, _ in hub.requests) == CODERS
    assert not any("lfs" in path for _, path, _ in hub.requests)


def test_a_refusal_by_xet_is_one_sentence_too(hub: StandInHub, folder: Path, tmp_path: Path):
    """Large files go by hf-xet where nothing else is said; it has errors and a log of its own."""
    process = started(hub, folder, tmp_path, HF_HUB_DISABLE_XET="0", RUST_LOG="debug")
    said, _ = process.communicate(timeout=120)
    last = said.splitlines()[-1]
    assert process.returncode == 1 and "UserError: publishing to 'me/coders' failed: " in last, said
    assert "403" in last and "use one with write access" in last
    assert TOKEN not in said
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    assert "trying again" not in said


@pytest.mark.parametrize(
    ("status", "then"),
    [("401", "the token is not accepted"), ("403", "use one with write access"), ("404", "is not there")],
)
def test_a_refusal_is_one_sentence_at_once(hub: StandInHub, folder: Path, status: str, then: str):
    hub.faults = [Fault("GET", "/tree/", status, times=10)]
    with pytest.raises(UserError, match=rf"{status}.*{then}") as caught:
        sent(folder)
    assert hub.faults[0].times == 9, "it is asked once"
    assert "\n" not in str(caught.value)


def test_a_private_repository_is_private(hub: StandInHub, folder: Path):
    sent(folder, private=True)
    assert hub.repositories[NAME].private


def test_nothing_goes_to_a_public_repository_that_was_to_be_private(hub: StandInHub, folder: Path):
    hub.repositories[NAME] = Repository()
    with pytest.raises(UserError, match="exists and is public"):
        sent(folder, private=True)
    assert held(hub) == {} and hub.puts() == 0


def test_without_a_token_nothing_is_asked(hub: StandInHub, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="set HF_TOKEN in the environment, or log in once by `hf auth login`"):
        sent(folder)
    assert hub.requests == []


def test_the_hubs_own_login_is_enough(hub: StandInHub, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_TOKEN")
    login = Path(constants.HF_TOKEN_PATH)
    login.parent.mkdir()
    login.write_text(TOKEN)
    assert sent(folder).files == 12
    assert hub.refused == 0


@pytest.mark.parametrize("error", [KeyError("oid"), TypeError("'NoneType' object is not iterable")])
def test_an_answer_that_is_not_the_hubs_is_a_sentence(
    hub: StandInHub, folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    """huggingface_hub reads answers as if nothing could be missing in them."""

    def stumble(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(uploading.HfApi, "list_repo_tree", stumble)
    monkeypatch.setattr(uploading, "PAUSE_SECONDS", 0.0)
    with pytest.raises(
        UserError,
        match=rf"its response is not a valid response of the hub \({type(error).__name__}: .*the same command",
    ):
        sent(folder)


def test_a_wrong_token_is_refused(hub: StandInHub, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wrongone" * 4)
    with pytest.raises(UserError, match="the token is not accepted") as caught:
        sent(folder)
    assert "wrongone" not in str(caught.value)


@pytest.mark.parametrize("how", ["403", "500"])
@pytest.mark.parametrize(("method", "part"), [("PUT", "/large/"), ("POST", "/commit/"), ("GET", "/tree/")])
def test_no_token_and_no_signature_is_ever_said(
    hub: StandInHub,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    method: str,
    part: str,
    how: str,
):
    """Not even where every logger speaks, the hub repeats the token to us, and the whole traceback is printed."""
    hub.faults = [Fault(method, part, how, times=1000)]
    heard = Heard()
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError) as caught:
        send(folder, NAME, private=False, reporter=heard)
    assert caught.value.__cause__ is None and caught.value.__context__ is None, "the request is not carried along"
    captured = capfd.readouterr()
    trace = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    for text in (*heard.said, captured.out, captured.err, caplog.text, str(caught.value), trace):
        assert TOKEN not in text
    for text in (*heard.said, captured.out, captured.err, str(caught.value)):
        assert "secret-signature" not in text
    if method != "PUT":
        assert "a fault, told to Bearer <token>" in str(caught.value), "the hub's own words are handed on, without it"


@pytest.mark.parametrize("name", ["coders", "a/b/c", "", "me/", "me/..", "https://huggingface.co/me/coders", "me/a b"])
def test_a_name_that_is_no_repository(name: str):
    with pytest.raises(UserError, match="write it as ORG/NAME"):
        check_repository(name)
    assert check_repository("me/my-coders.v1") == "me/my-coders.v1"
