"""One short run that holds every architecture in every wiring: trained, saved, loaded, measured, and resumed.

Shape letters: B rows, D width of a site.
"""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from panscope import coders
from panscope.coders import files as store
from panscope.coders.normaliser import Normaliser
from panscope.data.documents import open_documents
from panscope.data.tokens import TokenStream
from panscope.events import Reporter
from panscope.lms.load import load
from panscope.planning.plan import SuiteConfig
from panscope.runs import stages, training
from panscope.runs.run import Run
from panscope.storage.json_lines import JsonLines
from panscope.storage.tensors import read_tensors
from panscope.types import ActivationBatch
from tests.support.hearing import At

STEPS, BATCH, SHORT = 40, 128, 14
WIRINGS: dict[str, dict[str, Any]] = {
    "sae": {"layers": 2},
    "transcoder": {"layers": 2},
    "multilayer": {"layers": [1, 3]},
    "crosscoder": {"layers": 2, "sites": "resid_post + mlp_out"},
}
SPARSITY = {"relu": 0.03, "topk": 8, "batchtopk": 8, "matryoshka": 8, "jumprelu": 1e-3, "gated": 0.03}
TABLES: list[dict[str, Any]] = [
    {"wiring": wiring, "architecture": architecture, "sparsity": sparsity, "width": 96} | where
    for wiring, where in WIRINGS.items()
    for architecture, sparsity in SPARSITY.items()
] + [
    {"wiring": "multilayer", "recipe": "multilayer_sae", "sparsity": 8, "width": 96, "layers": "all"},
    {"wiring": "crosscoder", "recipe": "openai_topk", "sparsity": 8, "width": 96, "layers": [0, 4]},
    {"wiring": "crosscoder", "recipe": "llama_scope", "sparsity": 8, "width": 96, "layers": [1, 2]},
    {"wiring": "multilayer", "recipe": "multilayer_sae", "sparsity": 8, "width": 96, "layers": [2, 4]}
    | {"convert_to": "jumprelu"},
    {"recipe": "gemma_scope_2", "target_l0": 12, "width": 96, "layers": 1},
    {"wiring": "transcoder", "architecture": "topk", "sparsity": 8, "width": 96, "layers": 1, "skip": True},
    {"architecture": "batchtopk", "sparsity": 8, "width": 96, "layers": 0, "tokens": SHORT * BATCH},
]
SHORT_NAME = "L00R-1.5x-batchtopk-k8"


def suite_config(shared: Path) -> SuiteConfig:
    fields: dict[str, Any] = {
        "tokens": STEPS * BATCH,
        "model": {"path": str(shared / "models" / "stories260K"), "device": "cpu"},
        "data": {"text": [str(shared / "text" / "tinystories.jsonl")], "context": 64, "held_out": 0.1},
        "activations": {"norm_rows": 1000, "buffer_rows": 2000},
        "train": {"batch": BATCH, "log_every": 5, "checkpoint_every": 100},
        "eval": {"tokens": 200},
        "coders": TABLES,
    }
    return SuiteConfig.read(fields, "test")


@pytest.fixture(scope="module")
def run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("wirings") / "all"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CALIBRATION_ROWS", 1024)
        assert stages.start(suite_config(shared), folder, Reporter()) is not None
    return Run.open(folder)


def results(run: Run) -> dict[str, dict[str, Any]]:
    return {name: json.loads((run.coder_folder(name) / "eval.json").read_text()) for name in run.coder_names()}


def test_every_architecture_is_there_in_every_wiring(run: Run):
    assert set(SPARSITY) == set(coders.ARCHITECTURES)
    found = set()
    for name in run.coder_names():
        config = json.loads((run.coder_folder(name) / "config.json").read_text())
        found.add((config["wiring"]["wiring"], config["training"]["coder"]["architecture"]))
    assert found == {(wiring, architecture) for wiring in WIRINGS for architecture in coders.ARCHITECTURES}
    assert len(run.coder_names()) == len(TABLES)
    assert {"all-R-1.5x-topk-k8", "CC-L02-RM-1.5x-gated-l0.03", "CC-L00.04-R-1.5x-topk-k8"} <= set(run.coder_names())


def test_every_coder_has_every_number_for_every_site(run: Run):
    for name, result in results(run).items():
        wiring = store.load(run.coder_folder(name)).wiring
        several = [str(site) for site in wiring.predicts] if len(wiring.predicts) > 1 else []
        assert list(result.get("sites", {})) == several, name
        for numbers in (result, *result.get("sites", {}).values()):
            values = {key: value for key, value in numbers.items() if isinstance(value, int | float)}
            assert len(values) >= 17
            assert all(math.isfinite(value) for value in values.values()), name
        for field in ("fvu", "l0", "delta_loss", "ce_spliced", "kl") if several else ():
            apart = [one[field] for one in result["sites"].values()]
            assert result[field] == pytest.approx(sum(apart) / len(apart), rel=1e-12), name


def test_the_table_of_results_names_every_site(run: Run):
    table = pyarrow.parquet.read_table(run.path / "results.parquet").to_pylist()
    assert [row["coder"] for row in table] == run.coder_names()
    measured = results(run)
    for row in table:
        wiring = store.load(run.coder_folder(row["coder"])).wiring
        assert row["wiring"] == wiring.wiring
        assert row["predicts"].split() == [str(site) for site in wiring.predicts]
        assert row["layer"] == (wiring.predicts[0].layer if len(wiring.predicts) == 1 else None)
        assert row["fvu"] == measured[row["coder"]]["fvu"]


def rows_of(run: Run) -> ActivationBatch:
    """Raw rows of held-out text at every site of the run."""
    suite = run.suite
    lm = load(suite.model)
    stream = TokenStream(open_documents(suite.data), lm.tokenizer, suite.data, part="held_out", seed=1, epochs=1)
    batch = next(stream)
    sites = sorted({site for name in run.coder_names() for site in store.load(run.coder_folder(name)).wiring.sites()})
    reading = lm.run(batch.token_ids, batch.attention_mask, read=sites)
    rows = {site: reading.activations[site][batch.content] for site in sites}
    index = torch.arange(len(rows[sites[0]]))
    return ActivationBatch(rows, index, index, index)


def test_every_saved_coder_on_raw_rows_is_the_trained_one_between_its_normaliser(run: Run):
    """Folding, freezing and converting change no function; weights of the training are read back and put together."""
    batch = rows_of(run)
    for name in run.coder_names():
        config = json.loads((run.coder_folder(name) / "config.json").read_text())
        fields = config["training"]["coder"]
        trained = coders.build(coders.config_type(fields["architecture"]).read(fields, name))
        trained.load_tensors(read_tensors(run.coder_folder(name) / "training.safetensors")).double()
        normaliser = Normaliser.read(config["normaliser"], name)
        saved = store.load(run.coder_folder(name))
        x, _ = saved.wiring.rows(batch)
        inside, stats = normaliser.input(x.double())
        codes = trained.encode(inside)
        expected = normaliser.undo(trained.decode(codes, inside), stats)
        latents = saved.encode(x)
        found = saved.decode(latents, x).double()
        if config["coder"]["architecture"] == "jumprelu" and fields["architecture"] == "topk":
            assert latents.l0().double().mean() == pytest.approx(8, rel=0.3), (
                name
            )  # another text than the calibration's
            continue
        error = (found - expected).norm(dim=1) / expected.norm(dim=1)
        # A pre-activation within rounding of a threshold or of the next largest may fall on the other side: rare.
        assert (error < 1e-4).double().mean() > 0.99, name
        assert (latents.l0() == codes.l0()).double().mean() > 0.98, name


def test_a_coder_with_fewer_tokens_says_so(run: Run):
    config = json.loads((run.coder_folder(SHORT_NAME) / "config.json").read_text())
    assert config["tokens"] == SHORT * BATCH
    lines = [record for record in JsonLines(run.train_log).read() if record["coder"] == SHORT_NAME]
    assert [line["step"] for line in lines] == [5, 10, 14]
    every = [record for record in JsonLines(run.train_log).read() if record["step"] == STEPS]
    assert len(every) == len(TABLES) - 1


def test_learning_helps_everywhere(run: Run):
    """The worst of them, at 40 steps, lost a quarter of its error between its first and its last logged line."""
    records = JsonLines(run.train_log).read()
    for name in run.coder_names():
        fvu = [record["fvu"] for record in records if record["coder"] == name]
        assert fvu[-1] < 0.85 * fvu[0], name


@pytest.mark.parametrize("step", [10, 25])
def test_stopped_and_taken_up_again_it_ends_with_the_same_bytes(
    run: Run, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
):
    """Before and after the coder of few tokens is done."""
    monkeypatch.setattr(training, "CALIBRATION_ROWS", 1024)
    assert (
        stages.start(
            suite_config(shared), tmp_path / "cut", At("training", step, lambda: os.kill(os.getpid(), signal.SIGINT))
        )
        is None
    )
    cut = Run.open(tmp_path / "cut")
    assert json.loads(cut.status_file.read_text())["stage"] == "stopped"
    assert stages.resume(cut, Reporter()) is not None
    for pattern in ("suite.toml", "coders/*/*", f"checkpoint/step_{STEPS:08d}/*.safetensors"):
        files = sorted(path.relative_to(run.path) for path in run.path.glob(pattern))
        assert files
        assert files == sorted(path.relative_to(cut.path) for path in cut.path.glob(pattern))
        for file in files:
            assert (run.path / file).read_bytes() == (cut.path / file).read_bytes(), file
    logs = [JsonLines(one.train_log).read() for one in (run, cut)]
    for record in logs[0] + logs[1]:
        del record["rows_per_second"]
    assert logs[0] == logs[1]
