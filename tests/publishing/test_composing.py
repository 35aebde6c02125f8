"""What is published: SAELens loads it as it is, the card says what the files say, no path of this machine is in it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import save_file

from panscope.coders import files as store
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.events import Reporter
from panscope.formats import FORMATS, ImportOptions
from panscope.publishing.card import check_licence
from panscope.publishing.compose import Composed, compose
from panscope.publishing.figures import card_figures
from panscope.publishing.hub_upload import send
from panscope.publishing.provenance import redact_paths
from panscope.reporting.runs import read_runs
from panscope.runs.finished_coder import HELD_OUT
from panscope.runs.run import Run
from panscope.storage.atomic import checksum
from panscope.storage.sealed import read_sealed, write_sealed_toml
from panscope.types import UserError
from tests.support.made_run import FOR_SAELENS, NOT_FOR_SAELENS, NOT_MEASURED, D, made, write_made_run
from tests.support.peers import run_in_peers
from tests.support.stand_in_hub import StandInHub

NAME = "me/coders"
Peers = Callable[..., str]
FIGURES = {"figures/trade-off-delta-loss.svg", "figures/trade-off-fvu.svg"}
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Composed, Path]:
    """The run, what is published of it, what was said of that, and the places that are nobody's business."""
    folder = tmp_path_factory.mktemp("private-places")
    run = write_made_run(folder / "run", folder / "alice")
    out = folder / "out"
    out.mkdir()
    return run, out, composed(run, out), folder


@pytest.fixture(scope="module")
def run(places) -> Path:
    return places[0]


@pytest.fixture(scope="module")
def out(places) -> Path:
    return places[1]


def composed(run: Path, out: Path) -> Composed:
    figures = card_figures(read_runs([run]), HELD_OUT)
    return compose(Run.open(run), out, repository=NAME, licence="cc-by-4.0", label=HELD_OUT, figures=figures)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_there(places, out: Path):
    expected = {"README.md", *FIGURES}
    for name in FOR_SAELENS:
        expected |= {f"{name}/{file}" for file in ("cfg.json", "sae_weights.safetensors", "config.json")}
    expected |= {f"{NOT_FOR_SAELENS}/{file}" for file in ("weights.safetensors", "config.json")}
    expected |= {f"{name}/eval.json" for name in (*FOR_SAELENS, NOT_FOR_SAELENS) if name != NOT_MEASURED}
    assert set(files_of(out)) == expected
    made = places[2]
    assert set(made.coders) == {*FOR_SAELENS, NOT_FOR_SAELENS}
    assert set(made.left_out_of_saelens) == {NOT_FOR_SAELENS}
    assert made.not_measured == (NOT_MEASURED,)


def test_the_same_run_gives_the_same_bytes(run: Path, out: Path, tmp_path: Path):
    composed(run, tmp_path)
    assert files_of(tmp_path) == files_of(out)


def test_no_place_of_this_machine_is_published(places, out: Path):
    for name, content in files_of(out).items():
        for word in (b"private-places", b"alice", str(places[3].parent).encode()):
            assert word not in content, name
    config = json.loads((out / "L00R-2x-topk-k4" / "config.json").read_text())
    assert config["model"]["path"] == "lm" and config["activations"]["store"] == "store"
    fields = json.loads((out / "L00R-2x-topk-k4" / "eval.json").read_text())
    assert fields["evaluated_on"]["text"] == ["stories.jsonl"]
    assert list(fields["subsets"]) == ["stories.jsonl", "stories.jsonl (2)"]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("/srv/me/text.txt", "text.txt"),
        ("~/text", "text"),
        ("../me/lm/", "lm"),
        (r"C:\me\text.jsonl", "text.jsonl"),
        ("me/plans/text.parquet", "text.parquet"),  # relative to where it was trained
        ("gs://me:secret@bucket/rows", "gs://bucket/rows"),
        ("roneneldan/TinyStories", "roneneldan/TinyStories"),
        ("google/gemma-2-2b", "google/gemma-2-2b"),
        ("s3://bucket/text.txt", "s3://bucket/text.txt"),
    ],
)
def test_of_a_path_the_last_part_is_published(said: str, shown: str):
    assert redact_paths({"where": [said]}) == {"where": [shown]}


def test_our_files_keep_their_seals_and_numbers(run: Path, out: Path):
    for name in FOR_SAELENS:
        config = read_sealed(out / name / "config.json")
        weights = out / name / "sae_weights.safetensors"
        assert config["xxh3"] == {weights.name: checksum(weights)}
        assert config["coder"] == store.read_config(run / "coders" / name)["coder"]
        if name != NOT_MEASURED:
            theirs, ours = (read_sealed(place / name / "eval.json") for place in (out, run / "coders"))
            assert {key: theirs[key] for key in ("fvu", "l0", "intervals")} == {
                key: ours[key] for key in ("fvu", "l0", "intervals")
            }


def test_cfg_json_has_both_names_of_each_site(out: Path):
    metadata = json.loads((out / "L01TC-2x-jumprelu-l1e-3" / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.1.ln2.hook_normalized"
    assert metadata["hook_name_out"] == "blocks.1.hook_mlp_out"
    assert metadata["hf_hook_name"] == "model.layers.1.post_attention_layernorm.output_before_gain"
    assert metadata["hf_hook_name_out"] == "model.layers.1.mlp.output"
    assert (metadata["context_size"], metadata["prepend_bos"], metadata["model_name"]) == (64, True, "lm")
    assert metadata["panscope"]["about"]["normaliser_folded"]["scale_in"] == 1.5


def test_what_saelens_has_no_place_for_is_loaded_by_us(run: Path, out: Path):
    ours, published = store.load(run / "coders" / NOT_FOR_SAELENS), store.load(out / NOT_FOR_SAELENS)
    assert published.wiring == ours.wiring
    for name, tensor in ours.coder.tensors().items():
        assert torch.equal(published.coder.tensors()[name], tensor)


def test_we_read_back_what_is_for_saelens(run: Path, out: Path):
    x = torch.randn(64, D)
    for name in FOR_SAELENS:
        ours = store.load(run / "coders" / name)
        assert FORMATS["saelens"].detect(out / name)
        theirs = FORMATS["saelens"].read(out / name, ImportOptions()).wired
        assert theirs.wiring == ours.wiring
        torch.testing.assert_close(theirs.decode(theirs.encode(x), x), ours.decode(ours.encode(x), x))


COMPARE = """
import os, sys
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ.pop(name, None)
from pathlib import Path
from safetensors.torch import load_file
import torch
from sae_lens import SAE
folder, cases, repository = Path(sys.argv[1]), load_file(sys.argv[2]), sys.argv[3]
for name in sorted({key.rpartition("/")[0] for key in cases}):
    sae = SAE.from_pretrained(repository, name) if repository else SAE.load_from_disk(folder / name)
    x, y = cases[name + "/x"], cases[name + "/y"]
    if sae.cfg.reshape_activations == "hook_z":
        x = x.view(len(x), 2, -1)
    with torch.no_grad():
        z = sae(x) if hasattr(sae, "forward") else sae.decode(sae.encode(x))
    assert sae.cfg.metadata.hook_name.startswith("blocks."), sae.cfg.metadata
    print(name, float((z.reshape(y.shape) - y).abs().max() / y.abs().max()))
"""


@pytest.fixture
def cases(run: Path, tmp_path: Path) -> Path:
    """Random rows and our reconstruction of them, coder by coder."""
    tensors = {}
    for number, name in enumerate(FOR_SAELENS):
        x = torch.randn(64, D, generator=torch.Generator().manual_seed(number))
        wired = store.load(run / "coders" / name)
        tensors |= {f"{name}/x": x, f"{name}/y": wired.decode(wired.encode(x), x).detach()}
    save_file(tensors, tmp_path / "cases.safetensors")
    return tmp_path / "cases.safetensors"


def differences(said: str) -> dict[str, float]:
    lines = [line.split() for line in said.splitlines() if line.startswith(("L0", "all"))]
    return {name: float(value) for name, value in lines}


def check_close(said: str) -> None:
    found = differences(said)
    assert set(found) == set(FOR_SAELENS)
    for name, difference in found.items():
        assert difference < 1e-6, (name, difference)


def test_saelens_loads_every_folder_from_disk(out: Path, cases: Path):
    check_close(run_in_peers(COMPARE, out, cases, ""))


def test_saelens_loads_every_coder_by_its_name_from_the_hub(
    hub: StandInHub,
    out: Path,
    cases: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    send(out, NAME, private=False, reporter=Reporter())
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "peers-home"))
    check_close(run_in_peers(COMPARE, out, cases, NAME))


def blocks(out: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_cards_own_lines_run_in_three_tools(
    places, hub: StandInHub, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All three load the same coder of the hub, and agree on the same rows."""
    send(out, NAME, private=False, reporter=Reporter())
    rows, saelens, panscope, torch_alone = blocks(out)
    monkeypatch.chdir(places[3] / "alice")  # where `lm` is
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    scope: dict = {}
    exec(rows + panscope, scope)
    assert scope["x"].shape[1] == D and len(scope["x"]) > 2
    save_file({"x": scope["x"], "y": scope["y"].detach()}, tmp_path / "rows.safetensors")
    before = "import os, sys\ndel os.environ['HF_HUB_OFFLINE'], os.environ['TRANSFORMERS_OFFLINE']\n"
    after = "\nfrom safetensors.torch import load_file\nours = load_file(sys.argv[1])\n"
    after += "print(*(float((one - ours[name]).abs().max()) for name, one in (('x', x), ('y', y))))"
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "peers-home"))
    for lines in (saelens, torch_alone):
        said = run_in_peers(before + rows + lines + after, tmp_path / "rows.safetensors")
        assert all(float(word) < 1e-5 for word in said.split()[-2:]), said


def test_the_header_is_what_the_hub_reads(out: Path):
    card = ModelCard.load(out / "README.md")
    tags = ["sparse-autoencoder", "saelens", "panscope", "mechanistic-interpretability"]
    assert card.data.to_dict() == {"license": "cc-by-4.0", "library_name": "saelens", "tags": tags}


def test_models_and_texts_of_the_hub_are_named_to_the_hub(run: Path, tmp_path: Path):
    copy, out = tmp_path / "copy", tmp_path / "out"
    out.mkdir()
    write_sealed_toml(copy / "suite.toml", {"data": {"text": ["org/stories"]}, "coders": [{}]})
    coder = copy / "coders" / "L00R-2x-topk-k4"
    wired = store.load(run / "coders" / coder.name)
    store.save(coder, wired, wired.coder, {"model": {"path": "google/gemma-2-2b"}, "name": coder.name})
    compose(Run.open(copy), out, repository=NAME, licence="mit", label=HELD_OUT, figures={})
    card = ModelCard.load(out / "README.md")
    header = card.data.to_dict()
    assert (header["license"], header["base_model"], header["datasets"]) == (
        "mit",
        "google/gemma-2-2b",
        ["org/stories"],
    )
    metadata = json.loads((out / coder.name / "cfg.json").read_text())["metadata"]
    assert metadata["model_name"] == "google/gemma-2-2b" and metadata["dataset_path"] == "org/stories"
    assert metadata["hf_hook_name"] == "model.layers.0.output"
    assert "have not been measured" in card.text and "![" not in card.text
    assert "`google/gemma-2-2b`, trained with Panscope.\n" in card.text


def test_a_strangers_words_are_no_markdown(run: Path, tmp_path: Path):
    """An imported file says what its model is called."""
    copy, out = tmp_path / "copy", tmp_path / "out"
    out.mkdir()
    write_sealed_toml(copy / "suite.toml", {"coders": []})
    coder = copy / "coders" / "L00R-2x-topk-k4"
    wired = store.load(run / "coders" / coder.name)
    bad = "m`\n\n<script>x</script> | [a](http://b) \nlicense: none"
    store.save(coder, wired, wired.coder, {"model": {"path": bad}, "name": coder.name, "origin": {"format": bad}})
    compose(Run.open(copy), out, repository=NAME, licence="mit", label=HELD_OUT, figures={})
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "<script" not in text and "[a](" not in text and "\nlicense: none" not in text
    assert ModelCard.load(out / "README.md").data.to_dict()["license"] == "mit"


def test_the_table_has_the_numbers_of_eval_json(run: Path, out: Path):
    text = (out / "README.md").read_text(encoding="utf-8")
    rows = {cells[1].strip().strip("`"): cells for line in text.splitlines() if len(cells := line.split("|")) == 9}
    for name in (*FOR_SAELENS, NOT_FOR_SAELENS):
        cells = [cell.strip() for cell in rows[name]]
        if name == NOT_MEASURED:
            assert cells[3:8] == ["-"] * 5
            continue
        found = read_sealed(run / "coders" / name / "eval.json")
        assert cells[3] == f"{found['l0']:.1f}"
        assert cells[4] == f"{found['fvu']:.4f} ± 0.0150"
        assert cells[5] == f"{found['delta_loss']:+.4f}"
        assert cells[6:8] == [f"{found['loss_recovered']:.1%}", f"{found['dead_fraction']:.1%}"]
    assert "On 1,234 tokens of text kept from training (`stories.jsonl`)" in text


def test_the_card_says_what_how_and_under_which_licence(out: Path):
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "7 sparse autoencoders, 1 transcoder and 1 crosscoder on the activations of `lm`" in text
    assert "trained with Panscope, 8 of them measured with it." in text
    for words in ("4,864", "0123456789abcdef", "`cc-by-4.0`", "at most 64"):
        assert words in text, words
    assert f"- `{NOT_FOR_SAELENS}`: " in text
    for path in FIGURES:
        assert f"]({path})" in text and (out / path).read_text().startswith("<svg")


def test_a_damaged_run_is_one_sentence(run: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    file = copy / "coders" / "L00R-2x-topk-k4" / "eval.json"
    file.write_text(file.read_text().replace('"tokens": 1234', '"tokens": 9999'))
    with pytest.raises(UserError, match="does not match its own checksum"):
        compose(Run.open(copy), tmp_path / "out", repository=NAME, licence="mit", label=HELD_OUT, figures={})


@pytest.mark.parametrize("licence", ["CC BY 4.0", "", "mit\ntags: x", "-x"])
def test_a_licence_that_the_hub_cannot_read(licence: str):
    with pytest.raises(UserError, match="write it as the hub does"):
        check_licence(licence)


def test_every_site_of_a_coder_is_named_where_it_is_loaded(tmp_path: Path):
    run = Run.create(tmp_path / "run")
    sites = ["L01.resid_post", "L02.resid_post"]
    wiring = Wiring.read({"wiring": "multilayer", "reads": sites, "predicts": sites}, "")
    coder = made("topk", {"sparsity": 4}, 0)
    store.save(run.coder_folder("L01-02-R"), WiredCoder(wiring, coder), coder, {"model": {"path": "org/lm"}})
    write_sealed_toml(run.suite_file, {"coders": []})
    out = tmp_path / "out"
    out.mkdir()
    compose(run, out, repository=NAME, licence="mit", label=None, figures={})
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "of `blocks.1.hook_resid_post` or `blocks.2.hook_resid_post` in TransformerLens." in text
    assert "`x` are the rows, [tokens, 12]:" in text
