"""`panscope formats`, `import` and `export` as a user types them: there and back, and every refusal one sentence."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from panscope.api.verbs import evaluate
from panscope.coders import files as store
from panscope.formats import FORMATS
from panscope.publishing import find_coders
from panscope.publishing.export import export
from panscope.runs.run import Run
from panscope.storage.sealed import write_json
from panscope.types import UserError
from tests.support.tiny_lm import Command, Tiny, save_model

TOPK, JUMP = "L01R-2x-topk-k4", "L00M-2x-jumprelu-l1e-3"
GPT2 = [(said, "openai-community/gpt2", 768) for said in ("gpt2", "gpt2-small", "GPT2-small")]
_BOTH = {"tokens": 640, "width": 32, "convert_to": "none"}


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a TopK and a JumpReLU coder, shared and never changed."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def run(panscope: Command, tiny: Tiny, trained: Path, tmp_path: Path) -> Path:
    if not trained.is_dir():
        topk = {**_BOTH, "sites": ["resid_post"], "layers": [1], "architecture": "topk", "sparsity": 4}
        jump = {**_BOTH, "sites": ["mlp_out"], "layers": [0], "architecture": "jumprelu", "sparsity": 1e-3}
        jump.pop("convert_to")
        call = panscope("train", tiny.suite(tmp_path / "s.toml", topk, jump, tokens=640), "--out", trained)
        assert call.status == 0, call.err
    return trained


def numbers(run: Path, coder: str, label: str = "text") -> dict[str, Any]:
    return json.loads((run / "coders" / coder / f"eval-{label}.json").read_text())


def only(run: Path) -> str:
    (name,) = Run.open(run).coder_names()
    return name


def test_formats_lists_every_one(panscope: Command):
    call = panscope("formats")
    assert call.status == 0
    for format in FORMATS.values():
        whole = " ".join(call.out.split())
        assert f"{format.name} {format.description} imports {' '.join(format.imports)} exports" in whole
        assert not format.needs or f"import needs {format.needs}" in whole


@pytest.mark.parametrize(
    ("coder", "format"),
    [
        (TOPK, "saelens"),
        (TOPK, "sparsify"),
        (TOPK, "dictionary_learning"),
        (JUMP, "saelens"),
        (JUMP, "gemma_scope"),
        (JUMP, "gemma_scope_2"),
        (JUMP, "dictionary_learning"),
    ],
)
def test_there_and_back(panscope: Command, tiny: Tiny, run: Path, coder: str, format: str):
    """Exported, imported, and measured: the same coder."""
    call = panscope("export", run / "coders" / coder, "--format", format, "--out", "theirs")
    assert (call.status, "The coder is in theirs" in call.out) == (0, True), call.err
    ours = store.load(run / "coders" / coder)
    site = str(ours.wiring.reads[0])
    call = panscope("import", "theirs", "--out", "back", "--model", tiny.model, "--site", site, "--format", format)
    assert call.status == 0, call.err
    name = only(Path("back"))
    theirs = store.load(Path("back/coders") / name)
    assert theirs.wiring == ours.wiring and name.startswith(coder[:7])
    x = torch.randn(64, 16)
    torch.testing.assert_close(theirs.decode(theirs.encode(x), x), ours.decode(ours.encode(x), x), atol=1e-5, rtol=1e-5)
    config = json.loads((Path("back/coders") / name / "config.json").read_text())
    assert config["origin"]["format"] == format and config["origin"]["source"].endswith("theirs")


def test_an_imported_run_is_measured_as_the_trained_one(panscope: Command, tiny: Tiny, run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "copy")
    assert panscope("export", copy, "--format", "saelens", "--out", "theirs").status == 0
    assert panscope("import", "theirs", "--out", "back", "--model", tiny.model).status == 0
    for folder in (copy, "back"):
        call = panscope("eval", folder, "--text", tiny.text, "--tokens", 200)
        assert call.status == 0, call.err
    names = Run.open("back").coder_names()
    assert len(names) == 2
    for name, theirs in zip((JUMP, TOPK), names, strict=True):
        ours = numbers(copy, name, "text"), numbers(tmp_path / "back", theirs, "text")
        assert ours[0]["tokens"] == ours[1]["tokens"]
        for field in ("l0", "fvu", "ce_spliced", "delta_loss"):
            assert ours[0][field] == pytest.approx(ours[1][field], abs=1e-5), field
    call = panscope("report", "back")
    assert (call.status, "the numbers are those of the evaluation text" in call.out) == (0, True), call.err
    assert panscope("report", "back", copy, "--out", "both").status == 0
    with Path("both/figures/results.csv").open() as file:
        assert sorted(row["run"] for row in csv.DictReader(file) if row["fvu"]) == ["back", "back", "copy", "copy"]
    call = panscope("report", copy, "--eval", "books")
    assert "eval is 'books', but the run 'copy' has no such evaluation: it has held_out, text" in call.sentence()
    call = panscope("publish", "back", "--to", "me/coders", "--dry-run", "look")
    assert (call.status, "the numbers are those of the evaluation text" in call.out) == (0, True), call.err
    card = Path("look/README.md").read_text()
    assert "imported into Panscope and measured with it." in card and "](figures/trade-off-fvu.svg)" in card
    assert f" tokens of text (`{Path(tiny.text).name}`), " in card
    for name in names:
        found, published = numbers(tmp_path / "back", name), json.loads(Path("look", name, "eval.json").read_text())
        assert f"| `{name}` | " in card and f"| {found['l0']:.1f} | {found['fvu']:.4f} ± " in card
        assert (published["fvu"], published["evaluated_on"]["label"]) == (found["fvu"], "text")
        assert json.loads(Path("look", name, "cfg.json").read_text())["metadata"]["l0"] == found["l0"]
    assert str(tmp_path) not in "".join(path.read_text("latin-1") for path in Path("look").rglob("*") if path.is_file())


def strangers(run: Path, coder: str, out: str) -> Path:
    """A coder exported as if another tool had written it: nothing in its files says what it was called."""
    folder = Path(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    export(run / "coders" / coder, "saelens", folder)
    (folder / "panscope.json").unlink()
    fields = json.loads((folder / "cfg.json").read_text())
    write_json(folder / "cfg.json", fields | {"metadata": fields["metadata"] | {"panscope": None}})
    return folder


@pytest.mark.parametrize("format", ["saelens", "gemma_scope", "dictionary_learning"])
def test_a_coder_of_ours_comes_back_under_its_name(panscope: Command, tiny: Tiny, run: Path, format: str):
    panscope("export", run / "coders" / JUMP, "--format", format, "--out", "theirs")
    call = panscope("import", "theirs", "--out", "back", "--model", tiny.model)
    assert (call.status, only(Path("back"))) == (0, JUMP), call.err
    assert panscope("import", "theirs", "--out", "moved", "--model", tiny.model, "--site", "L01.mlp_out").status == 0
    assert only(Path("moved")) == "L01M-2x-jumprelu"


@pytest.mark.parametrize("name", ["../../evil", "a\nb", ".hidden", "x" * 300, 7])
def test_a_name_that_cannot_be_a_folders_is_not_taken(panscope: Command, tiny: Tiny, run: Path, name: object):
    panscope("export", run / "coders" / JUMP, "--format", "gemma_scope", "--out", "theirs")
    beside = Path("theirs/panscope.json")
    fields = json.loads(beside.read_text())
    fields["panscope"]["about"]["name"] = name
    beside.write_text(json.dumps(fields))
    assert panscope("import", "theirs", "--out", "back", "--model", tiny.model).status == 0
    assert only(Path("back")) == "L00M-2x-jumprelu"


def test_a_penalty_that_no_file_says_is_named_nowhere(panscope: Command, tiny: Tiny, run: Path):
    """Of a TopK coder the files say K, of a JumpReLU coder nothing: then its numbers stand without one."""
    for coder in (JUMP, TOPK):
        strangers(run, coder, f"theirs/{coder[:3]}")
    assert panscope("import", "theirs", "--out", "back", "--model", tiny.model).status == 0
    assert Run.open("back").coder_names() == ["L00M-2x-jumprelu", TOPK]
    assert panscope("eval", "back", "--text", tiny.text, "--tokens", 200).status == 0
    table = pyarrow.parquet.read_table("back/results-text.parquet").to_pylist()
    assert [(row["coder"], row["sparsity"]) for row in table] == [("L00M-2x-jumprelu", None), (TOPK, 4)]
    assert panscope("report", "back").status == 0
    with Path("back/report/figures/trade-off-fvu.csv").open() as file:
        rows = {row["coder"]: row for row in csv.DictReader(file)}
    assert (rows["L00M-2x-jumprelu"]["sparsity"], rows[TOPK]["sparsity"]) == ("", "4.0")
    assert rows["L00M-2x-jumprelu"]["variant"] == "jumprelu, 32 wide"
    assert rows[TOPK]["variant"] == "topk, 32 wide, K = 4"


def test_without_text_an_imported_run_has_none_held_out(panscope: Command, tiny: Tiny, run: Path):
    panscope("export", run / "coders" / TOPK, "--format", "saelens", "--out", "theirs")
    panscope("import", "theirs", "--out", "back", "--model", tiny.model)
    for more in ((), ("--context", 12), ("--model", tiny.model), ("--as-trained",)):
        call = panscope("eval", "back", *more)
        assert call.sentence() == "the run 'back' was imported and has no text of its own: give --text FILE"
    with pytest.raises(UserError, match="was imported and has no text of its own"):
        evaluate("back")


def test_a_site_may_be_said_by_the_hooks_name(panscope: Command, tiny: Tiny, run: Path):
    panscope("export", run / "coders" / TOPK, "--format", "dictionary_learning", "--out", "theirs")
    Path("theirs/panscope.json").unlink()
    Path("theirs/config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderTopK", "k": 4}}))
    call = panscope("import", "theirs", "--out", "back", "--model", tiny.model)
    assert "name the site that it reads (--site, or options= in Python), such as L03.resid_post" in call.sentence()
    for site in ("L01.resid_post", "blocks.1.hook_resid_post"):
        call = panscope("import", "theirs", "--out", f"back-{site}", "--model", tiny.model, "--site", site)
        assert (call.status, only(Path(f"back-{site}"))) == (0, TOPK), call.err
    call = panscope("import", "theirs", "--out", "back", "--model", tiny.model, "--site", "blocks.1.hook_k")
    assert "site 'blocks.1.hook_k' is not understood: write it as L03.mlp_out" in call.sentence()


def test_a_coder_without_a_place_is_told_how_to_get_one(panscope: Command, run: Path):
    call = panscope("export", run / "coders" / TOPK, "--format", "gemma_scope", "--out", "theirs")
    assert "this one is 'topk': train it with convert_to = 'jumprelu' in its [[coders]] table" in call.sentence()


def test_what_is_exported_says_where_it_stands_and_comes_from(panscope: Command, tiny: Tiny, run: Path, tmp_path: Path):
    for format in ("gemma_scope", "saelens"):
        panscope("export", run / "coders" / JUMP, "--format", format, "--out", format)
        about = json.loads(Path(format, "panscope.json").read_text())
        assert about["hook_name"] == "blocks.0.hook_mlp_out"
        assert about["hf_hook_name"] == "model.layers.0.mlp.output"
        assert about["model_name"] == "lm"
        said = about["panscope"]["about"]
        assert (said["name"], said["normaliser_folded"]["kind"], said["trained_as"]) == (JUMP, "unit_rms", "jumprelu")
        assert str(tiny.model.parent) not in json.dumps(about)


@pytest.mark.parametrize("format", ["saelens", "sparsify", "dictionary_learning"])
def test_a_k_that_the_file_says_otherwise_is_refused(panscope: Command, tiny: Tiny, run: Path, format: str):
    assert panscope("export", run / "coders" / TOPK, "--format", format, "--out", "theirs").status == 0
    flags = ("--model", tiny.model, "--site", "L01.resid_post", "--format", format)
    call = panscope("import", "theirs", "--out", "back", *flags, "--k", 3)
    assert (call.status, "k is 3, but " in call.sentence(), " says 4: omit --k" in call.sentence()) == (
        2,
        True,
        True,
    )
    assert not Path("back").exists()
    assert panscope("import", "theirs", "--out", "back", *flags, "--k", 4).status == 0


def test_a_folder_of_many(panscope: Command, tiny: Tiny, run: Path):
    """Formats side by side and below each other; two coders of one name are told apart by their places."""
    panscope("export", run, "--format", "saelens", "--out", "many/one")
    panscope("export", run / "coders" / TOPK, "--format", "dictionary_learning", "--out", "many/two/deep")
    panscope("export", run / "coders" / TOPK, "--format", "saelens", "--out", "many/three")
    Path("many/notes.txt").write_text("not a coder")
    call = panscope("import", "many", "--out", "back", "--model", tiny.model, "--site", "L01.resid_post")
    assert call.status == 0, call.err
    assert f"4 coders of {tiny.model} in back; evaluate by panscope eval back --text FILE" in call.out
    names = Run.open("back").coder_names()
    assert len(names) == 4 and sum(name.startswith("L01R-2x-topk-k4") for name in names) == 3
    assert any("three" in name or "one" in name or "deep" in name for name in names)
    for name in names:
        store.load(Path("back/coders") / name)


def test_a_model_may_be_said_by_a_relative_path(panscope: Command, tiny: Tiny, run: Path, tmp_path: Path):
    assert panscope("export", run, "--format", "saelens", "--out", "sae").status == 0
    shutil.copytree(tiny.model, tmp_path / "lm")
    call = panscope("import", "sae", "--out", "again", "--model", "lm")
    assert call.status == 0, call.err
    assert len(list((tmp_path / "again" / "coders").iterdir())) > 1


def test_links_to_folders_are_not_followed(panscope: Command, tiny: Tiny, run: Path):
    panscope("export", run / "coders" / TOPK, "--format", "saelens", "--out", "elsewhere/theirs")
    Path("source").mkdir()
    os.symlink(Path("elsewhere").absolute(), "source/link")
    os.symlink(Path("source").absolute(), "source/loop")
    call = panscope("import", "source", "--out", "back", "--model", tiny.model)
    assert (call.status, "holds no coder of any format" in call.sentence()) == (2, True)


def test_the_search_has_an_end(panscope: Command, tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(find_coders, "MOST_ENTRIES", 20)
    for number in range(30):
        Path(f"source/{number}").mkdir(parents=True)
    call = panscope("import", "source", "--out", "back", "--model", tiny.model)
    assert (call.status, "holds more than 20 files and folders" in call.sentence()) == (2, True)


def test_mistakes_are_one_sentence_and_leave_nothing(panscope: Command, tiny: Tiny, run: Path, tmp_path: Path):
    panscope("export", run / "coders" / TOPK, "--format", "dictionary_learning", "--out", "theirs")
    panscope("export", run / "coders" / TOPK, "--format", "saelens", "--out", "named")
    save_model(tmp_path / "wide", spoilt=False, d_model=24)
    model = ("--model", tiny.model)
    cases = {
        ("nowhere", *model): "'nowhere' does not exist",
        ("named", *model, "--format", "word"): "format 'word' is unknown: use one of saelens, ",
        ("named", *model, "--format", "openai"): "'named' holds no coder of the format openai",
        ("named", *model, "--site", "resid_post"): "site 'resid_post' is not understood: write it as L03.mlp_out",
        ("named", "--model", tmp_path / "wide"): "takes rows of 16 numbers at L01.resid_post, where the model",
        ("named", *model, "--site", "L09.resid_post"): "this model has 2 layers",
        ("named", *model, "--k", 0): "k is 0: expected a whole number above 0",
    }
    for arguments, sentence in cases.items():
        call = panscope("import", *arguments, "--out", "back")
        assert (call.status, sentence in call.sentence()) == (2, True), call.err
        assert not Path("back").exists() and not list(tmp_path.glob(".back*"))


def test_a_model_must_be_said_and_be_one(panscope: Command, tiny: Tiny, run: Path):
    panscope("export", run, "--format", "saelens", "--out", "theirs")

    def name_the_model(coder: str, name: str | None) -> Path:
        file = Path("theirs", coder, "cfg.json")
        fields = json.loads(file.read_text())
        fields["metadata"] |= {"model_name": name, "panscope": None}
        file.write_text(json.dumps(fields))
        return file.parent

    name_the_model(TOPK, "model-1")
    name_the_model(JUMP, "model-2")
    call = panscope("import", "theirs", "--out", "back")
    assert (call.status, "import them into a run each" in call.sentence()) == (2, True), call.err
    call = panscope("import", name_the_model(TOPK, None), "--out", "back")
    assert (call.status, "does not say which language model it belongs to: say it by --model" in call.sentence()) == (
        2,
        True,
    )


def test_a_home_that_is_nobodys_is_a_sentence(panscope: Command, tiny: Tiny, run: Path, tmp_path: Path):
    assert panscope("export", run / "coders" / TOPK, "--format", "saelens", "--out", "theirs").status == 0
    nobodys = "~nouserxyz/x"
    for call in (
        panscope("import", nobodys, "--out", "back", "--model", tiny.model),
        panscope("import", "theirs", "--out", nobodys, "--model", tiny.model),
        panscope("import", "theirs", "--out", "back", "--model", nobodys),
        panscope("export", nobodys, "--format", "saelens", "--out", "again"),
        panscope("export", run, "--format", "saelens", "--out", nobodys),
        panscope("train", "--model", nobodys, "--text", tiny.text, "--width", 32, "--sparsity", 4),
        panscope("train", "--model", tiny.model, "--text", nobodys, "--width", 32, "--sparsity", 4),
        panscope("eval", nobodys),
    ):
        assert (call.status, f"{nobodys!r}: this machine knows no home" in call.sentence()) == (2, True), call.err
    file = Path("theirs", "cfg.json")
    fields = json.loads(file.read_text())
    file.write_text(json.dumps(fields | {"metadata": fields["metadata"] | {"model_name": nobodys, "panscope": None}}))
    call = panscope("import", "theirs", "--out", "back")
    assert (call.status, "'theirs' names a language model that cannot be" in call.sentence()) == (2, True), call.err
    assert not Path("back").exists()


def test_what_a_stranger_says_of_itself_can_always_be_written(panscope: Command, tiny: Tiny, run: Path):
    """Nested as deep as JSON allows, half a character, a model's name too long for any file: read, or a sentence."""
    assert panscope("export", run / "coders" / TOPK, "--format", "saelens", "--out", "theirs").status == 0
    file = Path("theirs", "cfg.json")
    fields = json.loads(file.read_text())
    deep = json.loads('{"a": ' * 900 + "1" + "}" * 900)
    for metadata, sentence in (
        ({"deep": deep}, "more than 50 deep"),
        ({"model_name": "\ud800"}, "surrogates not allowed"),
        ({"l0": 1 << 80}, "integer of 81 bits"),
    ):
        file.write_text(json.dumps(fields | {"metadata": fields["metadata"] | metadata}))
        call = panscope("import", "theirs", "--out", "back")
        assert (call.status, sentence in call.sentence()) == (2, True), call.err
    named = {"model_name": "x" * 300, "panscope": None}
    file.write_text(json.dumps(fields | {"metadata": fields["metadata"] | named}))
    call = panscope("import", "theirs", "--out", "back")
    assert call.status == 0, call.err
    assert panscope("export", "back", "--format", "saelens", "--out", "again").status == 0


def test_names_of_folders_may_be_any(panscope: Command, tiny: Tiny, run: Path):
    """Coders of one name are told apart by their places, which may be no names of ours and break lines."""
    assert panscope("export", run / "coders" / TOPK, "--format", "saelens", "--out", "theirs").status == 0
    for name in ("a\nb", "-", "y" * 200):
        shutil.copytree("theirs", Path("many", name))
    os.symlink("loop", "many/loop")
    call = panscope("import", "many", "--out", "back", "--model", tiny.model)
    assert (call.status, r"'many/a\nb'" in call.out) == (0, True), call.err
    assert len(Run.open("back").coder_names()) == 3


def test_a_model_of_the_hub_is_known_by_its_short_name(panscope: Command, run: Path, no_network: None):
    """As SAELens writes it, or the user; the widths of a model of the table are checked without any network."""
    panscope("export", run / "coders" / TOPK, "--format", "saelens", "--out", "theirs")
    file = Path("theirs", "cfg.json")
    fields = json.loads(file.read_text())
    fields["metadata"] |= {"model_name": "gemma-2-2b", "panscope": None}
    file.write_text(json.dumps(fields))
    call = panscope("import", "theirs", "--out", "back")
    assert (call.status, "where the model 'google/gemma-2-2b' has 2304" in call.sentence()) == (2, True), call.err
    for said, meant, width in (("gemma-2-9b", "google/gemma-2-9b", 3584), *GPT2):
        call = panscope("import", "theirs", "--out", "back", "--model", said)
        assert (call.status, f"where the model '{meant}' has {width}" in call.sentence()) == (2, True), call.err
    fields["metadata"] |= {"model_name": "someone/unknown-model", "context_size": 96}
    file.write_text(json.dumps(fields))
    call = panscope("import", "theirs", "--out", "back")
    assert call.status == 0, call.err
    said = "someone/unknown-model is not on this machine: its widths were not compared with those of the coders"
    assert said in call.out and "1 coder of someone/unknown-model in back" in call.out
    suite = Path("back/suite.toml").read_text()
    assert 'path = "someone/unknown-model"' in suite and "context = 96" in suite


def test_nothing_is_written_over(panscope: Command, tiny: Tiny, run: Path):
    panscope("export", run / "coders" / TOPK, "--format", "saelens", "--out", "theirs")
    call = panscope("export", run / "coders" / TOPK, "--format", "saelens", "--out", "theirs")
    assert (call.status, "nothing is written over: choose another --out" in call.sentence()) == (2, True)
    call = panscope("import", "theirs", "--out", run, "--model", tiny.model)
    assert call.sentence().endswith("exists already and nothing is written over: choose another --out")


def test_an_export_that_is_refused_leaves_nothing(panscope: Command, run: Path, tmp_path: Path):
    call = panscope("export", run, "--format", "gemma_scope", "--out", "theirs")
    assert call.status == 2 and call.sentence().startswith(f"{TOPK}: ")
    assert not Path("theirs").exists() and not list(tmp_path.glob(".theirs*"))
    call = panscope("export", tmp_path, "--format", "saelens", "--out", "theirs")
    assert (call.status, "is neither the folder of a coder" in call.sentence()) == (2, True)


def test_a_broken_coder_among_many_leaves_no_run(panscope: Command, tiny: Tiny, run: Path, tmp_path: Path):
    panscope("export", run, "--format", "saelens", "--out", "theirs")
    (tmp_path / "theirs" / TOPK / "sae_weights.safetensors").write_bytes(b"\xff" * 64)
    call = panscope("import", "theirs", "--out", "back", "--model", tiny.model)
    assert (call.status, TOPK in call.sentence()) == (2, True)
    assert not Path("back").exists() and not list(tmp_path.glob(".back*"))
    broken = panscope("import", f"theirs/{TOPK}", "--out", "back", "--model", tiny.model)
    assert (broken.status, broken.out) == (2, ""), "what is refused is not counted first"


def test_autoencoders_that_others_trained(panscope: Command, shared: Path):
    """dictionary_learning's, as bare files: told what they do not say, they become a run that can be exported."""
    source = shared / "foreign_saes" / "dictionary_learning_autoencoder"
    call = panscope("import", source, "--out", "back", "--model", "someone/model", "--site", "L03.mlp_out")
    assert call.status == 0, call.err
    names = Run.open("back").coder_names()
    assert len(names) == 2 and names[0].startswith("L03M-")
    call = panscope("export", "back", "--format", "saelens", "--out", "theirs")
    assert call.status == 0, call.err
    assert {path.name for path in Path("theirs").iterdir()} == set(names)
