"""Loading coders by path, run and name, foreign folder and hub address, with a local folder as a mock hub."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.hf_api import RepoFolder

from panscope.coders import files as store
from panscope.formats import FORMATS
from panscope.formats.base import ImportedCoder, ImportOptions
from panscope.lms.load import named_device
from panscope.lms.model import LanguageModel
from panscope.loading import hub
from panscope.loading.load import load
from panscope.runs.run import Run
from panscope.types import Site, UserError
from tests.support.attached import made

SITE = Site(1, "resid_post")
X = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def run(tmp_path: Path, llama: LanguageModel) -> Path:
    """A run with two coders."""
    folder = Run.create(tmp_path / "run")
    folder.suite_file.write_text("name = 'run'\n")
    for name, architecture in (("L01R-topk", "topk"), ("L01R-jump", "jumprelu")):
        wired = made(llama, SITE, architecture=architecture).wired
        store.save(folder.coder_folder(name), wired, wired.coder, {"model": {"path": "m"}})
    return folder.path


def test_our_own(run: Path, llama: LanguageModel) -> None:
    expected = made(llama, SITE)
    for coder in (load(run, "L01R-topk"), load(str(run / "coders" / "L01R-topk"), kernels="sparse")):
        assert (coder.name, coder.about["model"]) == ("L01R-topk", {"path": "m"})
        assert coder.path == run / "coders" / "L01R-topk"
        torch.testing.assert_close(coder.encode(X).tensor(), expected.encode(X).tensor())
    assert coder.kernels == "sparse"
    with pytest.raises(UserError, match="is a run: name one of its coders: L01R-jump, L01R-topk"):
        load(run)
    with pytest.raises(UserError, match="has no coder 'L09': L01R-jump, L01R-topk"):
        load(run, "L09")
    with pytest.raises(UserError, match="has no coder 'L01R-topk': it contains none, and is not a run"):
        load(run / "coders" / "L01R-topk", "L01R-topk")
    with pytest.raises(UserError, match="revision 'v1' is set, but"):
        load(run, "L01R-topk", revision="v1")
    with pytest.raises(UserError, match=r"options are given, but '.*L01R-topk' is a Panscope coder, which states all"):
        load(run, "L01R-topk", options=ImportOptions(k=2))
    kernels: Any = "fast"
    with pytest.raises(UserError, match="kernels is 'fast': use one of auto, sparse, reference"):
        load(run, "L01R-topk", kernels=kernels)
    assert load(run, "L01R-topk", device="auto").device == named_device("auto")
    for device in ("gpu", "cuda:99"):
        with pytest.raises(UserError, match=f"device '{device}' cannot be used on this machine"):
            load(run, "L01R-topk", device=device)
    weights = run / "coders" / "L01R-topk" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"dead")
    with pytest.raises(UserError):
        load(run, "L01R-topk")


@pytest.mark.parametrize("format", ["saelens", "gemma_scope"])
def test_foreign_folders(tmp_path: Path, llama: LanguageModel, format: str) -> None:
    coder = made(llama, SITE, architecture="jumprelu")
    folder = tmp_path / "layer_1"
    folder.mkdir()
    FORMATS[format].write(ImportedCoder(coder.wired, {"model": "m"}), folder)
    for found in (load(folder), load(folder, format=format), load(folder, options=ImportOptions(reads=SITE))):
        assert found.wiring.reads == (SITE,)
        assert found.name == "layer_1"
        torch.testing.assert_close(found.encode(X).tensor(), coder.encode(X).tensor(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.decode(found.encode(X)), coder.decode(coder.encode(X)), rtol=1e-4, atol=1e-5)


def test_no_coder_at_all(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match=r"is neither a Panscope coder nor in a known format \(saelens, "):
        load(tmp_path)
    with pytest.raises(UserError, match="format 'nothing' is unknown: use one of saelens, "):
        load(tmp_path, format="nothing")


class Hub:
    """A mock of `snapshot_download` that returns a folder and records its arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []

    def __call__(self, repo: str, **options: Any) -> str:
        self.asked.append((repo, {name: value for name, value in options.items() if value is not None}))
        if repo == "nobody/nothing":
            raise FileNotFoundError("404 Client Error.\nmore lines")
        return str(self.folder)


def test_one_folder_of_a_repository(run: Path, llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = Hub(run / "coders")
    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", stand_in)
    coder = load("some.one/sae-s:L01R-topk", revision="v2")
    assert coder.name == "L01R-topk"
    assert stand_in.asked == [("some.one/sae-s", {"allow_patterns": ["L01R-topk/*"], "revision": "v2"})]
    assert load("some.one/sae-s", "L01R-topk").name == "L01R-topk"
    assert stand_in.asked[-1] == ("some.one/sae-s", {"allow_patterns": ["L01R-topk/*"]})
    stand_in.folder = run / "coders" / "L01R-topk"
    torch.testing.assert_close(load("some.one/sae-s").encode(X).tensor(), coder.encode(X).tensor())
    assert stand_in.asked[-1] == ("some.one/sae-s", {"ignore_patterns": ["*/*"]})


def test_one_of_several_side_by_side(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of coders by name, as `export` and `publish` write it."""
    assert load(run / "coders", "L01R-topk").name == "L01R-topk"
    with pytest.raises(UserError, match=r"contains several coders: name one of .*L01R-topk"):
        load(run / "coders")
    with pytest.raises(UserError, match=r"has no coder 'L09': its coders are .*L01R-topk"):
        load(run / "coders", "L09")
    with pytest.raises(UserError, match=r"has no coder '\.\.': its coders are"):
        load(run / "coders", "..")

    class Api:
        def list_repo_tree(self, repo: str, revision: str | None) -> list[Any]:
            return [RepoFolder(path=name, oid="0") for name in ("L01R-topk", "figures")]

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", Hub(run / "coders"))
    monkeypatch.setattr(hub.huggingface_hub, "HfApi", Api)
    with pytest.raises(UserError, match="'some/one' has no folder 'L02': it has L01R-topk, figures"):
        load("some/one:L02")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "nobody/nothing:x",
            "is not a local folder, and cannot be downloaded from the hub: 404 Client Error. more lines$",
        ),
        ("some/one:L02", "'some/one' has no folder 'L02': look at its files on the hub"),
        ("some/one:../../etc", r"names the folder '../../etc'"),
        ("some/one:/etc", "names the folder '/etc'"),
        ("some/one:a*", r"names the folder 'a\*'"),
        ("./not/here", "'./not/here' is neither an existing folder nor a hub id: write a hub id as org/repo:coder"),
        ("plain", "is neither an existing folder nor a hub id"),
    ],
)
def test_addresses_that_lead_nowhere(run: Path, monkeypatch: pytest.MonkeyPatch, address: str, message: str) -> None:
    class Api:
        def list_repo_tree(self, repo: str, revision: str | None) -> list[Any]:
            raise OSError("no network")

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", Hub(run / "coders"))
    monkeypatch.setattr(hub.huggingface_hub, "HfApi", Api)
    with pytest.raises(UserError, match=message):
        load(address)
