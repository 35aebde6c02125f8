"""`panscope publish` as a user types it."""

import shutil
import sys
from pathlib import Path

import pytest

from panscope.cli.main import main
from panscope.storage.locks import locked
from tests.support.made_run import FOR_SAELENS, write_made_run
from tests.support.stand_in_hub import TOKEN, Fault, Repository, StandInHub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_made_run(tmp_path / "run", tmp_path / "alice")


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Calls the verb; its exit status and what it said in one line. Whatever it says, there is no token in it."""
    monkeypatch.setenv("COLUMNS", "400")

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["panscope", "publish", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        seen = capfd.readouterr()
        assert "Traceback" not in seen.err and TOKEN not in seen.out + seen.err
        return int(str(caught.value.code)), " ".join((seen.out + seen.err).split())

    return call


def paths(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_shows_it_all_and_asks_nobody(publish, run: Path, tmp_path: Path, no_network: None):
    before = paths(run) | {".lock"}
    status, said = publish(run, "--to", "me/coders", "--dry-run", tmp_path / "look")
    assert status == 0
    assert "9 coders under the licence cc-by-4.0 the numbers are those of the evaluation held_out" in said
    assert "all-CC-R-2x-topk-k4 is not for SAELens: " in said
    assert "1 coders were not measured, such as L01Z-2x-jumprelu-l1e-3" in said
    assert said.endswith(f"nothing was sent; what would be is in {tmp_path / 'look'}")
    assert len(paths(tmp_path / "look")) == 37
    assert paths(run) == before, "the run itself is untouched"


def test_what_is_published_is_what_the_dry_run_shows(publish, hub: StandInHub, run: Path, tmp_path: Path):
    publish(run, "--to", "me/coders", "--dry-run", tmp_path / "look", "--licence", "mit")
    before = paths(run)
    status, said = publish(run, "--to", "me/coders", "--licence", "mit", "--private")
    assert (status, said.rpartition(" commit ")[2]) == (
        0,
        f"1 of 1 37 files sent, 0 were there: {hub.endpoint}/me/coders",
    )
    repository = hub.repositories["me/coders"]
    assert repository.private
    look = tmp_path / "look"
    assert {path: content for path, (content, _) in repository.files.items()} == {
        path: (look / path).read_bytes() for path in paths(look)
    }
    assert paths(run) == before, "nothing is left in the run"
    status, said = publish(run, "--to", "me/coders", "--licence", "mit", "--private")
    assert (status, said.endswith(f"0 files sent, 37 were there: {hub.endpoint}/me/coders")) == (0, True)


def test_what_a_killed_process_left_is_not_sent(publish, hub: StandInHub, run: Path):
    left = run / ".publish.tmp" / "files" / "L00R-old"
    left.mkdir(parents=True)
    (left / "half.safetensors").write_bytes(b"half")
    assert publish(run, "--to", "me/coders")[0] == 0
    assert len(hub.repositories["me/coders"].files) == 37
    assert not list(run.glob(".publish*"))


def test_one_process_at_a_time_publishes_a_run(publish, hub: StandInHub, run: Path):
    place = run / ".publish.tmp"
    place.mkdir()
    with locked(place):
        status, said = publish(run, "--to", "me/coders")
    assert (status, "is in use by another process" in said, hub.requests) == (2, True, [])


def test_the_same_command_goes_on_after_a_failure(publish, hub: StandInHub, run: Path):
    hub.faults = [Fault("PUT", "/large/", "500", times=10_000, after=4)]
    status, said = publish(run, "--to", "me/coders")
    assert status == 2
    assert "Error: publishing to 'me/coders' failed 5 times: " in said
    assert said.endswith("what was sent is kept: the same command continues from there")
    assert not list(run.glob(".publish*")), "what was made to be sent is gone"
    hub.faults = []
    before, received = hub.puts(), len(hub.received)
    assert received == 4
    assert publish(run, "--to", "me/coders")[0] == 0
    assert len(hub.received) >= len(FOR_SAELENS) + 1
    assert hub.puts() - before == len(hub.received) - received
    assert len(hub.repositories["me/coders"].files) == 37


def test_what_is_replaced_and_what_is_left_is_said(publish, hub: StandInHub, run: Path):
    """A coder that the run has no more stays in the repository, as do files of one that is here."""
    assert publish(run, "--to", "me/coders")[0] == 0
    hub.repositories["me/coders"].files[".gitattributes"] = b"", False
    shutil.rmtree(run / "coders" / "L00R-2x-jumprelu-l1e-3")
    (run / "coders" / "L00R-2x-topk-k4" / "eval.json").unlink()
    status, said = publish(run, "--to", "me/coders")
    assert (status, "replacing in the repository: L00R-2x-topk-k4/cfg.json, " in said) == (0, True), said
    assert "figures/trade-off-fvu.svg, README.md left in the repository, though not of this run: " in said
    assert ": L00R-2x-jumprelu-l1e-3/, L00R-2x-topk-k4/eval.json sending" in said
    assert "L00R-2x-jumprelu-l1e-3/cfg.json" in hub.repositories["me/coders"].files
    assert "replacing" not in publish(run, "--to", "me/coders")[1]


def test_another_projects_repository_is_left_alone(publish, hub: StandInHub, run: Path):
    card = b"---\ntags:\n- saelens\n---\n# another project's card, which names panscope\n"
    hub.repositories["me/coders"] = Repository(files={"README.md": (card, False)})
    status, said = publish(run, "--to", "me/coders")
    assert (status, "its README.md was not written by Panscope: publish to another name" in said) == (2, True), said
    assert hub.repositories["me/coders"].files == {"README.md": (card, False)} and not hub.received
    del hub.repositories["me/coders"].files["README.md"]
    assert publish(run, "--to", "me/coders")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--to", "coders"], "to is 'coders', which is no repository of the hub: write it as ORG/NAME"),
        (["--to", "me/coders", "--licence", "My Own"], "licence is 'My Own': write it as the hub does"),
        (["--to", "me/coders", "--dry-run", "."], "nothing is written over: choose another --dry-run"),
    ],
)
def test_mistakes_are_one_sentence(publish, run: Path, no_network: None, arguments: list[str], sentence: str):
    status, said = publish(run, *arguments)
    assert (status, sentence in said) == (2, True), said


def test_without_a_login_it_says_so_before_any_work(publish, hub, run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_TOKEN")
    status, said = publish(run, "--to", "me/coders")
    assert (status, "there is no token for the hub" in said, hub.requests) == (2, True, [])


def test_a_damaged_run_leaves_no_folder(publish, run: Path, tmp_path: Path):
    coder = run / "coders" / "L00R-2x-topk-k4"
    (coder / "weights.safetensors").write_bytes(b"damage")
    status, said = publish(run, "--to", "me/coders", "--dry-run", tmp_path / "look")
    assert (status, "does not match its checksum" in said) == (2, True)
    assert not (tmp_path / "look").exists() and not list(tmp_path.glob(".look*"))
    shutil.rmtree(run / "coders")
    assert "has no finished coder yet" in publish(run, "--to", "me/coders", "--dry-run", tmp_path / "look")[1]
