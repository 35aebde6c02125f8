"""`panscope eval` in all its ways: killed and gone on with, in parts, with other text, models and precisions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from panscope.coders import files as store
from panscope.coders import inference
from panscope.data.source import is_in_part
from panscope.evals.spec import EvalShard
from panscope.events import Progress, Reporter
from panscope.lms.load import load
from panscope.runs.eval_request import EvalRequest
from panscope.runs.evaluation import evaluate_run
from panscope.runs.run import Run
from panscope.runs.saebench import write_saebench
from panscope.storage.atomic import checksum
from panscope.storage.sealed import read_sealed
from panscope.storage.tensors import read_tensors, write_tensors
from panscope.types import UserError
from tests.support.hearing import At, Heard
from tests.support.tiny_lm import CONTEXT, Command, Tiny, save_model, write_text

TOPK, RELU = "L00R-2x-topk-k4", "L01M-2x-relu-l0.1"


@pytest.fixture
def run(panscope: Command, tiny: Tiny, tmp_path: Path) -> Path:
    """A finished run of two coders at two sites, evaluated in many small batches."""
    tables = (
        {"width": 32, "sparsity": 4, "layers": 0, "convert_to": "jumprelu"},
        {"width": 32, "sparsity": 0.1, "layers": 1, "sites": "mlp_out", "recipe": "anthropic_relu"},
    )
    data = {"text": [str(tiny.text)], "held_out": 0.2, "sequences": 4}
    suite = tiny.suite(tmp_path / "s.toml", *tables, data=data, eval={"tokens": 600, "probes": 10})
    assert panscope("train", suite, "--out", "run").status == 0
    return tmp_path / "run"


def files_of(run: Path, suffix: str = "") -> dict[str, bytes]:
    """Everything an evaluation writes."""
    found = [*run.glob(f"coders/*/eval{suffix}.json"), *run.glob(f"coders/*/[lp]*s{suffix}.parquet")]
    found.append(run / f"results{suffix}.parquet")
    assert len(found) == 7
    return {str(path.relative_to(run)): path.read_bytes() for path in found}


def evaluated(run: Path, request: EvalRequest, reporter: Reporter | None = None) -> dict[str, dict[str, Any]] | None:
    folder = Run.open(run)
    suite = folder.suite
    return evaluate_run(folder, suite, load(request.model or suite.model), reporter or Reporter(), request)


def fields_of(run: Path, coder: str, suffix: str = "") -> dict[str, Any]:
    return read_sealed(run / "coders" / coder / f"eval{suffix}.json")


class Killed(BaseException):
    """What a kill is to a test in the same process."""


def killed() -> None:
    raise Killed


@pytest.mark.parametrize("tokens", [1, 150, 400, 590])
def test_a_killed_evaluation_goes_on_and_ends_with_the_same_bytes(run: Path, tokens: int):
    before = files_of(run)
    often = EvalRequest(save_seconds=0)
    with pytest.raises(Killed):
        evaluated(run, often, At("evaluating", tokens, killed, beyond=True))
    goes_on = Heard()
    assert evaluated(run, often, goes_on) is not None
    assert files_of(run) == before
    assert not (run / "evaluation").exists()
    if tokens > 1:
        assert "continuing after what was measured before" in goes_on.said[0]
        assert min(event.done for event in goes_on.events if isinstance(event, Progress)) > 100


def test_sums_of_another_question_are_not_gone_on_with(run: Path):
    """The same label, but more tokens, another text, other coders, another precision."""
    with pytest.raises(Killed):
        evaluated(run, EvalRequest(label="x", save_seconds=0), At("evaluating", 400, killed, beyond=True))
    for request in (
        EvalRequest(label="x", tokens=200),
        EvalRequest(label="x", coder_dtype="bfloat16"),
        EvalRequest(label="x", as_trained=True),
        EvalRequest(label="x", splice="all"),
    ):
        listens = Heard()
        evaluated(run, request, listens)
        assert listens.said == []
        with pytest.raises(Killed):
            evaluated(run, EvalRequest(label="x", save_seconds=0), At("evaluating", 400, killed, beyond=True))


@pytest.mark.parametrize("fault", ["cut", "flipped", "gone", "stand"])
def test_damaged_sums_are_a_sentence(run: Path, fault: str):
    with pytest.raises(Killed):
        evaluated(run, EvalRequest(save_seconds=0), At("evaluating", 400, killed, beyond=True))
    part = run / "evaluation" / "held_out" / "part-1-of-1"
    (sums,) = part.glob("*.safetensors")
    content = bytearray(sums.read_bytes())
    if fault == "gone":
        sums.unlink()
    elif fault == "stand":
        (part / "progress.json").write_text("{}")
    elif fault == "cut":
        sums.write_bytes(content[: len(content) // 2])
    else:
        content[-3] ^= 1
        sums.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged.*delete the folder .*part-1-of-1.* to measure again"):
        evaluated(run, EvalRequest())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_parts_in_any_order_make_the_whole(run: Path, order: tuple[int, ...]):
    whole = {name: fields_of(run, name) for name in (TOPK, RELU)}
    for number in order[:-1]:
        assert evaluated(run, EvalRequest(label="parts", share=EvalShard(number, 3))) is None
    with pytest.raises(Killed):
        evaluated(
            run,
            EvalRequest(label="parts", share=EvalShard(order[-1], 3), save_seconds=0),
            At("evaluating", 300, killed, beyond=True),
        )
    results = evaluated(run, EvalRequest(label="parts", share=EvalShard(order[-1], 3)))
    assert results is not None
    for name, expected in whole.items():
        close(results[name], expected)
        close(tables(run, name, "-parts"), tables(run, name, ""))
    assert not (run / "evaluation").exists()


def close(found: Any, expected: Any, where: str = "") -> None:
    """Equal, numbers to 1e-9; but for what names the evaluation itself.

    Zeros in this untrained model change its loss by next to nothing, which is what loss_recovered divides by; so how
    that differs between sequences is known to fewer digits.
    """
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected.keys() - {"evaluated_on", "files"}:
            close(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for n, (one, other) in enumerate(zip(found, expected, strict=True)):
            close(one, other, f"{where}[{n}]")
    else:
        near = 1e-6 if "intervals.loss_recovered" in where else 1e-9
        wanted = pytest.approx(expected, rel=near, abs=near) if isinstance(expected, float) else expected
        assert found == wanted or (found != found and expected is None), where


def tables(run: Path, coder: str, suffix: str) -> dict[str, Any]:
    folder = run / "coders" / coder
    return {
        kind: pyarrow.parquet.read_table(folder / f"{kind}{suffix}.parquet").to_pydict()
        for kind in ("latents", "positions")
    }


def test_parts_on_the_command_line(panscope: Command, run: Path):
    first = panscope("eval", run, "--part", "2/2", "--label", "halves")
    assert first.status == 0
    assert "part 2/2 is measured; the results come with the last of 1/2" in first.out
    second = panscope("eval", run, "--part", "1/2", "--label", "halves")
    assert TOPK in second.out
    assert fields_of(run, TOPK, "-halves")["fvu"] == pytest.approx(fields_of(run, TOPK)["fvu"], rel=1e-9)
    assert "part is '3/2': write the second of eight as 2/8" in panscope("eval", run, "--part", "3/2").sentence()


def test_tables_belong_to_their_eval(run: Path):
    for name in (TOPK, RELU):
        fields = fields_of(run, name)
        assert set(fields["files"]) == {"latents.parquet", "positions.parquet"}
        for file, xxh3 in fields["files"].items():
            assert checksum(run / "coders" / name / file) == xxh3
        latents = pyarrow.parquet.read_table(run / "coders" / name / "latents.parquet")
        assert latents["latent"].to_pylist() == list(range(32))
        assert sum(latents["firings"].to_pylist()) == pytest.approx(fields["l0"] * fields["tokens"])
        positions = pyarrow.parquet.read_table(run / "coders" / name / "positions.parquet")
        assert sum(positions["tokens"].to_pylist()) == fields["tokens"]
        assert max(positions["position"].to_pylist()) < CONTEXT


def test_as_trained_is_the_coder_before_it_became_jumprelu(run: Path):
    """TopK's L0 is exactly K and each row has its own threshold; the published coder has one for all rows."""
    assert evaluated(run, EvalRequest(label="as-trained", as_trained=True)) is not None
    published, trained = fields_of(run, TOPK), fields_of(run, TOPK, "-as-trained")
    assert trained["l0"] == pytest.approx(4, abs=0.05)
    assert published["l0"] != trained["l0"]
    assert trained["evaluated_on"]["as_trained"] is True
    topk, jumprelu = store.load_trained(run / "coders" / TOPK), store.load(run / "coders" / TOPK)
    assert (topk.coder.config.architecture, jumprelu.coder.config.architecture) == ("topk", "jumprelu")
    for number in ("fvu", "delta_loss"):  # of a ReLU coder nothing was changed but where its scale is kept
        assert fields_of(run, RELU, "-as-trained")[number] == pytest.approx(fields_of(run, RELU)[number], rel=1e-4)


def test_low_precision_is_nearly_the_same(panscope: Command, run: Path):
    call = panscope("eval", run, "--coder-dtype", "bfloat16")
    assert call.status == 0, call.err
    full, low = fields_of(run, RELU), fields_of(run, RELU, "-coder-bfloat16")
    assert low["evaluated_on"]["coder_dtype"] == "bfloat16"
    assert full["fvu"] != low["fvu"] == pytest.approx(full["fvu"], rel=0.05)
    assert low["ce_clean"] == full["ce_clean"]
    for half in ("float16", "bfloat16"):
        assert panscope("eval", run, "--dtype", half, "--label", half).status == 0
    both = panscope("eval", run, "--coder-dtype", "bfloat16", "--dtype", "bfloat16")
    assert both.status == 0, both.err
    assert fields_of(run, RELU, "-bfloat16-coder-bfloat16")["evaluated_on"]["dtype"] == "bfloat16"


def test_wide_coders_are_measured_by_sparse_kernels(run: Path, monkeypatch: pytest.MonkeyPatch):
    """Which compute TopK and JumpReLU codes of active places alone: ragged ones for the latter; the numbers stay."""
    monkeypatch.setattr(inference, "WIDE", 1)
    for label, as_trained, kind in (("jumprelu", False, "Sparse"), ("topk", True, "Sparse")):
        folder = run / "coders" / TOPK
        wired = store.load_trained(folder) if as_trained else store.load(folder)
        assert type(inference.backend_for(wired.coder, "auto")).__name__ == kind
        assert evaluated(run, EvalRequest(label=label, as_trained=as_trained)) is not None
    assert evaluated(run, EvalRequest(label="saebench", saebench=True)) is not None
    monkeypatch.undo()
    assert evaluated(run, EvalRequest(label="as-trained", as_trained=True)) is not None
    for sparse, reference in (("-jumprelu", ""), ("-topk", "-as-trained")):
        found, expected = fields_of(run, TOPK, sparse), fields_of(run, TOPK, reference)
        for number in ("l0", "fvu", "delta_loss", "kl", "dead_fraction", "uniformity", "cosine"):
            assert found[number] == pytest.approx(expected[number], rel=1e-4, abs=1e-6), number


def test_files_of_text_are_measured_apart(panscope: Command, run: Path, tmp_path: Path):
    lengths = {name: write_text(tmp_path / name, 30, seed) for seed, name in enumerate(["a.jsonl", "b.jsonl"], 3)}
    assert panscope("eval", run, "--text", "a.jsonl", "b.jsonl", "--label", "two").status == 0
    fields, alone = fields_of(run, TOPK, "-two"), {}
    for name, own in lengths.items():
        assert panscope("eval", run, "--text", name, "--label", "one").status == 0
        part, alone = fields["subsets"][name], fields_of(run, TOPK, "-one")
        assert part["tokens"] == alone["tokens"] == sum(min(length, CONTEXT - 1) for length in own)
        for number in ("l0", "mse", "delta_loss", "kl", "ce_zero_ablated"):
            assert part[number] == pytest.approx(alone[number], rel=1e-6, abs=1e-7)
            assert part["intervals"][number] == pytest.approx(alone["intervals"][number], rel=1e-6, abs=1e-7)
    assert "subsets" not in alone


def test_too_little_text_for_the_asked_precision(panscope: Command, run: Path):
    call = panscope("eval", run, "--precision", "1e-5")
    assert call.status == 2
    said = call.sentence()
    assert "is known to +-" in said
    assert "eval.precision asks for 1e-05" in said
    assert "measure on about" in said
    assert panscope("eval", run, "--precision", "10").status == 0
    asked = fields_of(run, TOPK)["intervals"]["delta_loss"]
    assert asked[1] - asked[0] < 20


def test_another_model_of_the_same_shape(panscope: Command, run: Path, tiny: Tiny, tmp_path: Path):
    torch.manual_seed(0)
    save_model_with(tmp_path / "tuned", lambda weight: weight * 1.01)
    own = fields_of(run, RELU)
    call = panscope("eval", run, "--model", tmp_path / "tuned", "--label", "tuned")
    assert call.status == 0, call.err
    tuned = fields_of(run, RELU, "-tuned")
    assert tuned["evaluated_on"]["model"] == str(tmp_path / "tuned")
    assert tuned["ce_clean"] != own["ce_clean"]
    assert fields_of(run, RELU) == own


def save_model_with(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """The tiny model with every weight changed."""
    save_model(folder, spoilt=False)
    path = folder / "model.safetensors"
    tensors = read_tensors(path)
    write_tensors(path, {name: change(weight) for name, weight in tensors.items()}, {"format": "pt"})


def test_a_coder_of_other_weights_or_another_shape(panscope: Command, run: Path, tiny: Tiny, tmp_path: Path):
    folder = tmp_path / "changed"
    save_model_with(folder, lambda weight: weight + 0.01)
    suite = run / "suite.toml"
    text = suite.read_text().split("\n", 1)[1].replace(str(tiny.model), str(folder))
    suite.write_text(text)
    said = panscope("eval", run).sentence()
    assert "was trained on another model than" in said and "its weights differ (xxh3" in said
    save_model(tmp_path / "wide", spoilt=False, d_model=32)
    said = panscope("eval", run, "--model", tmp_path / "wide", "--label", "wide").sentence()
    assert "takes rows of 16 numbers at L00.resid_post, where this model has 32" in said


def test_labels_name_files(panscope: Command, run: Path):
    for label in ("a b", "../x", "", "é"):
        call = panscope("eval", run, "--label", label, "--tokens", "100")
        assert call.status == (0 if label == "" else 2)
    assert "label is '../x'" in panscope("eval", run, "--label", "../x").sentence()
    assert "text and chats are both given" in panscope("eval", run, "--text", "a", "--chats", "b").sentence()
    assert "chats need both prefixes" in panscope("eval", run, "--chats", "b").sentence()


def test_saebench_writes_a_file_a_coder(panscope: Command, run: Path, tmp_path: Path):
    call = panscope("eval", run, "--saebench", tmp_path / "out")
    assert call.status == 0, call.err
    documents = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").iterdir())]
    assert {document["sae_lens_id"] for document in documents} == {TOPK, RELU}
    own = fields_of(run, TOPK, "-saebench")
    (document,) = [one for one in documents if one["sae_lens_id"] == TOPK]
    metrics = document["eval_result_metrics"]
    assert metrics["sparsity"]["l0"] == pytest.approx(own["l0"])
    assert metrics["model_performance_preservation"]["ce_loss_with_sae"] == pytest.approx(own["ce_spliced"])
    assert own["evaluated_on"]["splice"] == "all"
    assert own["predicted_tokens"] < own["tokens"]  # the last place of a sequence has nothing to predict


def test_saebench_files_of_a_coder_with_a_dead_latent(panscope: Command, run: Path, tmp_path: Path):
    """Such a latent has no mean."""
    assert panscope("eval", run, "--saebench", tmp_path / "out").status == 0
    path = run / "coders" / TOPK / "latents-saebench.parquet"
    rows = pyarrow.parquet.read_table(path).to_pylist()
    rows[0] |= {"firings": 0, "sequences": 0, "frequency": 0.0, "mean": None, "max": 0.0}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (written,) = [p for p in write_saebench(Run.open(run), tmp_path / "again", "saebench") if TOPK in p.name]
    details = json.loads(written.read_text())["eval_result_details"]
    assert details[0]["feature_density"] == 0.0


def test_longer_sequences_than_in_training(panscope: Command, run: Path, tiny: Tiny):
    call = panscope("eval", run, "--text", tiny.text, "--packing", "stream", "--context", CONTEXT, "--label", "long")
    assert call.status == 0, call.err
    assert fields_of(run, TOPK, "-long")["evaluated_on"]["packing"] == "stream"
    said = panscope("eval", run, "--text", tiny.text, "--context", CONTEXT + 1, "--packing", "stream").sentence()
    assert f"the model reads at most {CONTEXT} tokens: give --context {CONTEXT} or less" in said


def test_held_out_text_stays_held_out_when_only_the_packing_changes(panscope: Command, run: Path, tiny: Tiny):
    """Cut at 12 tokens the held-out documents have fewer tokens than are asked for, and all of them are measured."""
    assert panscope("eval", run, "--context", "12").status == 0
    fields = fields_of(run, TOPK, "-context-12")
    assert fields["evaluated_on"]["part"] == "held_out"
    documents = [json.loads(line)["text"] for line in tiny.text.read_text().splitlines()]
    held_out = [text for text in documents if is_in_part(text, "held_out", 0.2)]
    assert fields["tokens"] == sum(min(len(text.split()), 11) for text in held_out) < 600
