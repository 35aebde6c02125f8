"""What a stranger learns from the card alone: which rows, from where, what the names and numbers say, whom to cite."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import panscope
from panscope.coders import files as store
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.lms.load import load as load_model
from panscope.publishing.compose import compose
from panscope.publishing.provenance import load_for_export
from panscope.runs.finished_coder import FinishedCoder
from panscope.runs.run import Run
from panscope.storage.sealed import read_sealed_toml, write_sealed_toml
from panscope.types import Site
from tests.support.made_run import made, write_made_run, write_model
from tests.support.peers import run_in_peers

CODER = "L00R-2x-topk-k4"
OTHER = "L00R-2x-jumprelu-l1e-3"
NO_BOS = {"backend": "tokenizers", "tokenizer_class": "TokenizersBackend"}
TEXT = "Once upon a time"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def written(run: Path, out: Path, label: str | None = "held_out") -> str:
    """The card of a run."""
    out.mkdir()
    compose(Run.open(run), out, repository="me/coders", licence="mit", label=label, figures={})
    return (out / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_made_run(tmp_path / "run", tmp_path / "alice")


@pytest.fixture
def card(run: Path, tmp_path: Path) -> str:
    return written(run, tmp_path / "out")


def only(run: Path, *names: str) -> None:
    """Leave no coder but these."""
    for folder in (run / "coders").iterdir():
        if folder.name not in names:
            shutil.rmtree(folder)


def forget_bos(lm: Path) -> None:
    """A model without BOS, as those are that predict plain characters."""
    (lm / "tokenizer_config.json").write_text(json.dumps(NO_BOS))
    config = json.loads((lm / "config.json").read_text())
    (lm / "config.json").write_text(json.dumps(config | {"bos_token_id": None, "eos_token_id": None}))


def say_in_suite(run: Path, table: str, **fields: Any) -> None:
    suite = read_sealed_toml(run / "suite.toml")
    suite[table] = suite.get(table, {}) | fields
    write_sealed_toml(run / "suite.toml", suite)


def one_coder(folder: Path, model: dict[str, Any], kind: str = "resid_post") -> Path:
    """A run of one coder in a model of this name."""
    run = Run.create(folder)
    wiring = Wiring.read({"wiring": "sae", "reads": [f"L01.{kind}"], "predicts": [f"L01.{kind}"]}, "")
    coder = made("relu", {}, 0)
    store.save(run.coder_folder("L01-one"), WiredCoder(wiring, coder), coder, {"model": model, "name": "L01-one"})
    write_sealed_toml(run.suite_file, {"coders": [{}], "data": {"text": ["x"], "packing": "documents"}})
    return run.path


def block(card: str) -> str:
    found = re.search(r"```python\n(import torch\nfrom transformers.*?)```", card, re.DOTALL)
    assert found is not None, card
    return found[1]


def rows_of(card: str) -> torch.Tensor:
    scope: dict[str, Any] = {}
    exec(block(card), scope)
    return scope["x"]


def ours(lm: Path | str, kind: str = "resid_post") -> torch.Tensor:
    """The rows [T, D] of the same text as training reads them, BOS among them."""
    model, site = load_model(lm), Site(1, kind)
    return model.run(*model.tokens(TEXT), read=[site]).activations[site][0]


def check_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def prepend_bos(folder: Path) -> bool | None:
    return load_for_export(FinishedCoder(folder)).about.get("prepend_bos")


def test_bos_is_said_to_saelens_only_where_training_put_it(run: Path, tmp_path: Path):
    assert prepend_bos(run / "coders" / CODER) is True
    other = write_made_run(tmp_path / "no-bos", tmp_path / "bob")
    forget_bos(tmp_path / "bob" / "lm")
    assert prepend_bos(other / "coders" / CODER) is False
    text = written(other, tmp_path / "out")
    assert "Put no BOS before a text: training put none." in text
    assert json.loads((tmp_path / "out" / CODER / "cfg.json").read_text())["metadata"]["prepend_bos"] is False


def test_a_stream_has_no_bos(run: Path):
    say_in_suite(run, "data", packing="stream")
    assert prepend_bos(run / "coders" / CODER) is False


def test_where_the_model_is_gone_nobody_says(run: Path, tmp_path: Path):
    shutil.rmtree(tmp_path / "alice")
    assert prepend_bos(run / "coders" / CODER) is None
    text = written(run, tmp_path / "out")
    assert "prepend_bos" not in json.loads((tmp_path / "out" / CODER / "cfg.json").read_text())["metadata"]
    assert "Put BOS before every text if the model has one, as training did." in text


ASKS = """
import sys
from sae_lens import SAE, ActivationsStore
try:
    ActivationsStore.from_sae(None, SAE.load_from_disk(sys.argv[1]), dataset="none")
except ValueError as error:
    print(error)
"""


def test_saelens_asks_for_what_is_left_out(run: Path, tmp_path: Path):
    shutil.rmtree(tmp_path / "alice")
    written(run, tmp_path / "out")
    assert run_in_peers(ASKS, tmp_path / "out" / CODER).split("\n")[-2] == "prepend_bos is required"


def test_a_model_of_the_hub_is_not_asked_for(tmp_path: Path, no_network: None):
    run = one_coder(tmp_path / "run", {"path": "org/lm-which-is-not-here"})
    assert prepend_bos(run / "coders" / "L01-one") is None


def test_which_rows_the_coders_are_for(run: Path, card: str, tmp_path: Path):
    assert "Put BOS (token 0) before every text, as training did. Leave out the rows of BOS and other" in card
    assert "these coders were not trained on them and not measured on them." in card
    say_in_suite(run, "activations", special_tokens="zero")
    assert "they were zeros in training" in written(run, tmp_path / "zero")


def test_of_imported_coders_nobody_says_how_they_were_trained(run: Path, tmp_path: Path):
    only(run, OTHER)
    coder = store.load(run / "coders" / OTHER)
    provenance = {"model": {"path": str(tmp_path / "alice" / "lm")}, "origin": {"format": "sparsify"}}
    shutil.rmtree(run / "coders" / OTHER)
    store.save(run / "coders" / OTHER, coder, coder.coder, provenance)
    write_sealed_toml(run / "suite.toml", {"coders": [], "data": {"packing": "documents"}})
    text = written(run, tmp_path / "out", None)
    assert "is their makers' to say." in text and "numbers below" not in text and "to cite" not in text
    assert "ids = tokenizer(" in text and "sparsity coefficient" not in text
    assert prepend_bos(run / "coders" / OTHER) is None


def test_texts_within_a_chat(run: Path, tmp_path: Path):
    say_in_suite(run, "data", chat={"user": "<user>\n", "model": "<model>`\n", "content": "response"})
    text = written(run, tmp_path / "out")
    assert r'Texts stood in a chat, between `"<user>\n"`, whose rows are left out too, and `"<model>\u0060\n"`.' in text
    assert "Only rows of the response were used." in text


@pytest.mark.parametrize("kind", ["resid_post", "attn_z", "attn_out", "mlp_out", "mlp_in"])
def test_the_cards_lines_get_the_rows_that_training_had(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They are ours, at every site that is a module's input or output."""
    write_model(tmp_path / "lm")
    text = written(one_coder(tmp_path / "run", {"path": str(tmp_path / "lm")}, kind), tmp_path / "out", None)
    assert "`lm`" in text and "That model was a folder and is not public under a hub id." in text
    monkeypatch.chdir(tmp_path)
    check_equal(rows_of(text), ours(tmp_path / "lm", kind)[1:])


def test_without_bos_no_row_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_model(tmp_path / "lm")
    forget_bos(tmp_path / "lm")
    text = written(one_coder(tmp_path / "run", {"path": str(tmp_path / "lm")}), tmp_path / "out", None)
    monkeypatch.chdir(tmp_path)
    check_equal(rows_of(text), ours(tmp_path / "lm"))


def test_where_bos_is_not_known_the_tokenizer_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As with a model of the hub that is not on the machine that publishes."""
    text = written(one_coder(tmp_path / "run", {"path": "org/llama-7b"}), tmp_path / "out", None)
    assert "Put BOS before every text if the model has one" in text
    write_model(tmp_path / "org" / "llama-7b")
    monkeypatch.chdir(tmp_path)
    check_equal(rows_of(text), ours(tmp_path / "org" / "llama-7b")[1:])


def test_a_site_that_is_no_modules_end_has_no_such_lines(tmp_path: Path):
    run = one_coder(tmp_path / "run", {"path": "google/gemma-2-2b"}, "mlp_in_no_gain")
    text = written(run, tmp_path / "out", None)
    assert "register_forward_hook" not in text
    assert "`x` are the rows, [tokens, 12]:" in text


def test_the_built_in_model(tmp_path: Path):
    text = written(one_coder(tmp_path / "run", {"path": "panscope://demo"}), tmp_path / "out", None)
    assert "That is the small model built into the Python package `panscope`; it is not on the hub." in text
    assert "base_model" not in text
    check_equal(rows_of(text), ours("panscope://demo")[1:])


def test_a_model_of_the_hub_is_only_named(tmp_path: Path):
    run = one_coder(tmp_path / "run", {"path": "google/gemma-2-2b", "revision": "main", "dtype": "bfloat16"})
    text = written(run, tmp_path / "out", None)
    assert "not public" not in text and "not on the hub" not in text
    assert 'from_pretrained("google/gemma-2-2b", revision="main", dtype="bfloat16")' in text


HEADS = """
import os, sys
os.chdir(sys.argv[1])
import torch
from safetensors.torch import load_file
LINES
print(float((y - load_file(sys.argv[2])["y"]).abs().max()))
"""


def test_heads_apart_for_saelens(run: Path, card: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where others are at attn_z the card says how they are fed; where all are, its own lines feed one so."""
    assert "# at attn_z, SAELens wants the heads apart, [tokens, heads, d_head], which is\n# x.unflatten(-1," in card
    only(run, "L01Z-2x-jumprelu-l1e-3")
    lines = re.findall(r"```python\n(.*?)```", written(run, tmp_path / "z", None), re.DOTALL)[:2]
    monkeypatch.chdir(tmp_path / "alice")
    x = rows_of(f"```python\n{lines[0]}```")
    coder = store.load(run / "coders" / "L01Z-2x-jumprelu-l1e-3")
    save_file({"y": coder.decode(coder.encode(x), x).detach()}, tmp_path / "y.safetensors")
    here = str(tmp_path / "z" / "L01Z-2x-jumprelu-l1e-3")
    theirs = re.sub(r"SAE.from_pretrained\(.*\)", f"SAE.load_from_disk({here!r})", lines[1])
    said = run_in_peers(HEADS.replace("LINES", lines[0] + theirs), tmp_path / "alice", tmp_path / "y.safetensors")
    assert float(said.split()[-1]) < 1e-5


def test_which_coder_was_trained_how(card: str):
    """A row for each way: a reader of one coder's name finds its learning rate."""
    rows = [line for line in card.splitlines() if line.startswith("|") and "`sqrt_d`" in line]
    assert rows == [
        "| 3 with `-jumprelu-` in the name | `gemma_scope` | `jumprelu` | 4,864 | `0.005` | `sqrt_d` |",
        "| `L00R-2x-topk-k4`, `L01M-2x-topk-k4-centred`, `L01R-2x-standardised`, `all-CC-R-2x-topk-k4` | `panscope` | "
        "`topk` | 4,864 | `0.007` | `sqrt_d` |",
        "| `L01A-2x-relu-l1e-3` | `anthropic_relu` | `relu` | 4,864 | `0.005` | `sqrt_d` |",
        "| `L01M-2x-gated-l1e-3` | `saebench` | `gated` | 4,864 | `0.005` | `sqrt_d` |",
    ]


def test_names_are_explained_by_one_that_is_here(card: str):
    assert "L03R-8x" not in card
    assert (
        "`L00R-2x-jumprelu-l1e-3`: R (the residual stream after the block) of layer 0, 2 latents for each dimension, "
        "trained as jumprelu, sparsity coefficient 1e-3." in card
    )


def test_crosscoders_alone_have_no_cfg_json(run: Path, tmp_path: Path):
    only(run, "all-CC-R-2x-topk-k4")
    text = written(run, tmp_path / "out", None)
    assert "cfg.json" not in text and "sae_weights" not in text
    assert "a crosscoder at R (the residual stream after the block) of layers 0, 1" in text
    assert "reads `L00.resid_post` and `L01.resid_post`, a row a token, side by side" in text


def test_every_column_is_defined(card: str):
    heading = next(line for line in card.splitlines() if line.startswith("| coder | site |"))
    for column in heading.strip("| ").split(" | ")[2:]:
        assert f"- **{column}**: " in card
    assert "(loss with zeros - loss with the reconstruction) / (loss with zeros - loss as it is)" in card


def test_from_which_tool_when_and_whom_to_cite(run: Path, card: str, tmp_path: Path):
    assert f"Written by Panscope {panscope.__version__}. The run `run` ended on 2026-11-21." in card
    assert "- `gemma_scope`: Lieberum et al. 2024, Gemma Scope, sections 2.2, 3.1 and 3.2" in card
    assert card.count("github.com") == 1, "SAELens' address; Panscope has none that is known"
    (run / "status.json").unlink()
    assert " ended on " not in written(run, tmp_path / "undated")
