"""`panscope import` from the stand-in of the hub: one coder, several, whole repositories, every format; faults."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from panscope.api.verbs import import_coders
from panscope.cli.main import main
from panscope.coders import files as store
from panscope.events import Event, Message
from panscope.formats import FORMATS
from panscope.formats.base import ImportedCoder, ImportOptions, all_files
from panscope.publishing.provenance import load_for_export
from panscope.runs.run import Run
from panscope.types import UserError
from tests.support.making import RESID, STANDARDISE, foreign, random_coder, rows
from tests.support.stand_in_hub import Fault, Repository, StandInHub

MODEL = "someone/small"
GEMMA = "google/gemma-scope-2b-pt-res"
AT = ImportOptions(reads=RESID, model=MODEL, k=5)


def of_format(name: str) -> ImportedCoder:
    """A coder that the format can hold."""
    fields: dict[str, Any] = {"mlsae": {"encoder_bias": False, "pre_encoder_bias": True}}.get(name, {})
    architecture = FORMATS[name].exports[-1 if name in ("mlsae", "openai") else 0]
    coder = random_coder(architecture, **fields)
    return foreign(coder, normaliser=STANDARDISE) if name == "openai" else foreign(coder)


def put(repository: Repository, folder: Path, under: str = "") -> None:
    """Every file below a local folder, at `under` in the repository."""
    for file in folder.rglob("*"):
        if file.is_file():
            repository.files[under + file.relative_to(folder).as_posix()] = file.read_bytes(), False
    repository.commits.append([under])


@pytest.fixture(autouse=True)
def cache(hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of downloaded files."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def repository(hub: StandInHub) -> Repository:
    return hub.repositories.setdefault("some.one/saes", Repository())


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    """A coder in a format, written into a folder."""

    def write(name: str) -> Path:
        folder = tmp_path / "written" / name
        folder.mkdir(parents=True)
        FORMATS[name].write(of_format(name), folder)
        return folder

    return write


def downloaded(hub: StandInHub) -> list[str]:
    """The files that were downloaded, in order of their names."""
    found = {path.partition("/resolve/")[2].partition("/")[2] for method, path, _ in hub.requests if method == "GET"}
    return sorted(found - {""})


def origin_of(run: str | Path) -> dict[str, Any]:
    (name,) = Run.open(run).coder_names()
    return json.loads((Path(run) / "coders" / name / "config.json").read_text())["origin"]


def gemma(repository: Repository, written: Path, *places: str) -> None:
    for place in places:
        put(repository, written, f"{place}/")
        del repository.files[f"{place}/panscope.json"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_the_same_as_from_a_folder(
    hub: StandInHub, repository: Repository, written: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """And nothing is downloaded but the files that the format's reader opens."""
    folder = written(name)
    needed = [f"some/folder/{file.relative_to(folder).as_posix()}" for file in folder.rglob("*") if file.is_file()]
    put(repository, folder, "some/folder/")
    unused = ("README.md", "some/folder/optimizer.bin", "some/folder/notes/a.json", "some/other/big.safetensors")
    repository.files |= dict.fromkeys(unused, (b"x" * 1000, False))
    local = import_coders(folder, tmp_path / "local", AT, format=name, quiet=True)
    made = import_coders("some.one/saes:some/folder", tmp_path / "hub", AT, format=name, quiet=True)
    assert [one.format.name for one in made.coders.values()] == [name]
    assert downloaded(hub) == sorted(needed)
    (ours,), (theirs,) = local.coders, made.coders
    assert ours == theirs
    x = rows()
    one, other = store.load(tmp_path / "local/coders" / ours), store.load(tmp_path / "hub/coders" / theirs)
    assert torch.equal(one.decode(one.encode(x), x), other.decode(other.encode(x), x)) and one.wiring == other.wiring
    origin = origin_of(tmp_path / "hub")
    place = next(iter(made.coders.values())).place
    assert origin["source"] == f"some.one/saes:{place}" and place.startswith("some/folder")
    assert (origin["format"], origin["revision"]) == (name, repository.head)
    assert str(tmp_path) not in json.dumps(origin)


def test_of_a_format_that_names_no_files_the_whole_folder_is_downloaded(
    hub: StandInHub,
    repository: Repository,
    written: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of other packages."""
    monkeypatch.setitem(FORMATS, "saelens", replace(FORMATS["saelens"], files=all_files))
    put(repository, written("saelens"), "a/")
    repository.files |= dict.fromkeys(("a/more/b.txt", "c.txt"), (b"x", False))
    import_coders("some.one/saes:a", tmp_path / "out", AT, quiet=True)
    assert downloaded(hub) == ["a/cfg.json", "a/more/b.txt", "a/sae_weights.safetensors"]


def test_files_beside_the_coders_folder_are_read_too(
    hub: StandInHub, repository: Repository, written: Callable[[str], Path], tmp_path: Path
) -> None:
    """The run's config.json of sparsify and of dictionary_learning's checkpoints."""
    folder = written("sparsify")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({key: config[key] for key in ("d_in", "num_latents", "k")}))
    put(repository, folder, "run/layers.3/")
    repository.files["run/config.json"] = json.dumps({"sae": {}, "model": MODEL}).encode(), False
    made = import_coders("some.one/saes:run/layers.3", tmp_path / "out", quiet=True)
    assert (made.model, downloaded(hub)) == (
        MODEL,
        ["run/config.json", "run/layers.3/cfg.json", "run/layers.3/sae.safetensors"],
    )
    folder = written("dictionary_learning")
    put(repository, folder / ".", "dl/")
    repository.files["dl/checkpoints/ae_100.pt"] = repository.files.pop("dl/ae.pt")
    made = import_coders("some.one/saes:dl/checkpoints/ae_100.pt", tmp_path / "dl", AT, quiet=True)
    origin = origin_of(tmp_path / "dl")
    assert origin["source"] == "some.one/saes:dl/checkpoints/ae_100.pt" and origin["trainer"]["layer"] == 3


def test_one_several_or_all_of_a_repository(
    hub: StandInHub, written: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published layout of Gemma Scope: model, site and L0 are in the names."""
    repository = hub.repositories[GEMMA] = Repository()
    ten, one, eleven, wide = (
        "layer_10/width_40/average_l0_9",
        "layer_1/width_40/average_l0_9",
        "layer_11/width_40/average_l0_7",
        "layer_1/width_99/average_l0_9",
    )
    gemma(repository, written("gemma_scope"), ten, one, eleven, wide)
    repository.files["embedding/width_40/average_l0_3/params.npz"] = repository.files[f"{ten}/params.npz"]
    asked = ImportOptions(model="someone/small")  # Gemma's own width is not that of the coders.
    monkeypatch.chdir(tmp_path)

    def imported(*sources: str) -> list[str]:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        made = import_coders(sources, out, asked, quiet=True)
        return sorted(coder.place for coder in made.coders.values())

    assert imported(f"{GEMMA}:{ten}") == [ten]
    assert downloaded(hub) == [f"{ten}/params.npz"]
    assert imported(f"{GEMMA}:layer_1") == [one, wide]
    assert imported(f"{GEMMA}:layer_*/width_40") == sorted([one, ten, eleven])
    files = imported(f"{GEMMA}:layer_1*/*/average_l0_9/params.npz")
    assert files == sorted(f"{place}/params.npz" for place in (one, ten, wide))
    assert imported(f"{GEMMA}:{ten}", f"{GEMMA}:layer_11", f"{GEMMA}:layer_11") == [ten, eleven]
    with pytest.raises(UserError, match="is a coder of the embedding"):
        imported(GEMMA)
    del repository.files["embedding/width_40/average_l0_3/params.npz"]
    repository.commits.append([])
    assert imported(GEMMA) == sorted([one, ten, eleven, wide])
    with pytest.raises(UserError, match=f"'{GEMMA}' has no folder 'layer_9': it has layer_1, layer_10, layer_11$"):
        imported(f"{GEMMA}:layer_9")
    with pytest.raises(UserError, match=r"has no folder 'layer_\*/width_1'"):
        imported(f"{GEMMA}:layer_*/width_1")
    made = import_coders([written("saelens"), f"{GEMMA}:{ten}"], tmp_path / "mixed", asked, quiet=True)
    assert [coder.revision for coder in made.coders.values()] == [None, repository.head]


def test_a_coder_at_the_root_of_its_repository(
    repository: Repository, written: Callable[[str], Path], tmp_path: Path
) -> None:
    put(repository, written("mlsae"))
    import_coders("some.one/saes", tmp_path / "out", AT, quiet=True)
    assert origin_of(tmp_path / "out")["source"] == "some.one/saes"


def test_the_revision_is_recorded_and_survives_an_export(
    hub: StandInHub, repository: Repository, written: Callable[[str], Path], tmp_path: Path
) -> None:
    put(repository, written("saelens"), "a/")
    import_coders("some.one/saes:a", tmp_path / "out", AT, revision="v1", quiet=True)
    assert any("/revision/v1" in path for _, path, _ in hub.requests)
    run = Run.open(tmp_path / "out")
    about = load_for_export(run.coder(run.coder_names()[0])).about
    assert about["origin"] == {"format": "saelens", "source": "some.one/saes:a", "revision": repository.head}
    with pytest.raises(UserError, match=r"revision 'v1' is set, but '.*out' is a local path: omit revision"):
        import_coders(tmp_path / "out", tmp_path / "again", AT, revision="v1", quiet=True)


@pytest.mark.parametrize("how", ["drop", "503"])
def test_without_the_hub_the_local_copy_is_used_and_said(
    hub: StandInHub, repository: Repository, written: Callable[[str], Path], tmp_path: Path, how: str
) -> None:
    put(repository, written("saelens"), "a/")
    put(repository, written("gemma_scope_2"), "b/")
    import_coders("some.one/saes:a", tmp_path / "out", AT, quiet=True)
    hub.faults += [Fault(method, "", how, times=1000) for method in ("GET", "HEAD")]
    heard: list[Event] = []
    import_coders("some.one/saes", tmp_path / "again", AT, quiet=True, listeners=[heard.append])
    said = [event.text for event in heard if isinstance(event, Message)]
    assert said[0].startswith("the hub cannot be reached (") and said[0].endswith(
        "using this machine's copy of some.one/saes"
    )
    assert origin_of(tmp_path / "again") == origin_of(tmp_path / "out")
    with pytest.raises(UserError, match=r"'some.one/saes' has no folder 'b': it has a$"):
        import_coders("some.one/saes:b", tmp_path / "b", AT, quiet=True)
    with pytest.raises(UserError, match=r"there is no copy of it on this machine$"):
        import_coders("some.one/saes", tmp_path / "b", AT, revision="v2", quiet=True)
    with pytest.raises(UserError, match=r"there is no copy of it on this machine$"):
        import_coders("some.one/more", tmp_path / "b", AT, quiet=True)
    assert not (tmp_path / "b").exists()


def test_a_copy_that_lacks_a_file_is_not_read(
    hub: StandInHub, repository: Repository, written: Callable[[str], Path], tmp_path: Path, cache: Path
) -> None:
    """A download that was interrupted before the configuration would give another coder."""
    put(repository, written("gemma_scope_2"), "layer_3/")
    import_coders("some.one/saes", tmp_path / "out", AT, quiet=True)
    (lost,) = cache.rglob("snapshots/*/layer_3/config.json")
    lost.unlink()
    hub.faults += [Fault(method, "", "drop", times=1000) for method in ("GET", "HEAD")]
    with pytest.raises(UserError, match=r"'some.one/saes' cannot be downloaded from the hub: .*incomplete"):
        import_coders("some.one/saes", tmp_path / "again", AT, quiet=True)


def test_what_is_there_is_not_downloaded_again(
    hub: StandInHub, repository: Repository, written: Callable[[str], Path], tmp_path: Path
) -> None:
    put(repository, written("saelens"), "a/")
    import_coders("some.one/saes:a", tmp_path / "out", AT, quiet=True)
    assert downloaded(hub)
    hub.requests.clear()
    import_coders("some.one/saes:a", tmp_path / "again", AT, quiet=True)
    assert not downloaded(hub)


def test_a_failed_download_leaves_no_run_and_is_continued(
    hub: StandInHub, repository: Repository, written: Callable[[str], Path], tmp_path: Path
) -> None:
    put(repository, written("saelens"), "a/")
    hub.faults.append(Fault("GET", "sae_weights", "403", times=1000))
    with pytest.raises(UserError, match=r"'some.one/saes' cannot be downloaded from the hub: .*403") as caught:
        import_coders("some.one/saes:a", tmp_path / "out", AT, quiet=True)
    assert not (tmp_path / "out").exists() and "hf_" not in str(caught.value)
    hub.faults.clear()
    import_coders("some.one/saes:a", tmp_path / "out", AT, quiet=True)


def test_gated_and_missing_repositories(
    hub: StandInHub, repository: Repository, written: Callable[[str], Path], tmp_path: Path
) -> None:
    repository.gated = True
    put(repository, written("saelens"), "a/")
    with pytest.raises(UserError, match=r"Access to model some.one/saes is restricted"):
        import_coders("some.one/saes:a", tmp_path / "out", AT, quiet=True)
    with pytest.raises(UserError, match="'no/such' is not a local file or folder, and cannot be read from the hub: "):
        import_coders("no/such", tmp_path / "out", AT, quiet=True)
    repository.files.clear()
    repository.files["README.md"] = b"", False
    repository.commits.append([])
    with pytest.raises(UserError, match=r"'some.one/saes' holds no coder of any format"):
        import_coders("some.one/saes", tmp_path / "out", AT, quiet=True)
    with pytest.raises(UserError, match="source is empty"):
        import_coders([], tmp_path / "out", AT, quiet=True)


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil", "a\0b"])
def test_a_listing_that_leads_outside_is_refused(
    repository: Repository, written: Callable[[str], Path], tmp_path: Path, path: str
) -> None:
    put(repository, written("saelens"), "a/")
    repository.files[path] = b"", False
    with pytest.raises(UserError, match="which is outside of the repository"):
        import_coders("some.one/saes", tmp_path / "out", AT, quiet=True)
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("path", ["a/cfg.json/b", "x" * 300])
def test_a_listing_that_cannot_be_is_one_sentence(
    repository: Repository, written: Callable[[str], Path], tmp_path: Path, path: str
) -> None:
    put(repository, written("saelens"), "a/")
    repository.files[path] = b"", False
    with pytest.raises(UserError, match="which cannot exist here"):
        import_coders("some.one/saes", tmp_path / "out", AT, quiet=True)


def test_the_command_line(
    repository: Repository,
    written: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(repository, written("saelens"), "a/")
    put(repository, written("sparsify"), "b/")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")

    def call(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr("sys.argv", ["panscope", "import", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        seen = capsys.readouterr()
        return caught.value.code, seen.out + seen.err

    status, out = call(
        "some.one/saes:a", "some.one/saes:b", "--out", "run", "--site", "L03.resid_post", "--model", MODEL
    )
    assert status in (0, None), out
    assert f"some.one/saes:a: 1 coder, 0.0 MB, at revision {repository.head}" in out
    assert "saelens, some.one/saes:a" in out and "2 coders of someone/small in run" in out
    assert len(Run.open("run").coder_names()) == 2
    status, out = call("some.one/saes:c", "--out", "other")
    assert status == 2 and "'some.one/saes' has no folder 'c': it has a, b" in out and "Traceback" not in out
