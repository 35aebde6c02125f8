"""A notebook's whole way through `panscope.api`: train, evaluate, look at the tables, load, attach, attribute."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from panscope import api
from panscope.runs.eval_request import EvalRequest
from panscope.types import UserError

REPOSITORY = Path(__file__).parent.parent.parent
GUIDE = REPOSITORY / "docs" / "guides" / "use_latents.md"
SUITE: dict[str, Any] = {
    "name": "small",
    "tokens": 3000,
    "model": {"device": "cpu"},
    "data": {"text": ["panscope://demo"], "sequences": 8, "context": 64},
    "eval": {"tokens": 600, "probes": 32},
    "train": {"batch": 256},
    "coders": [{"recipe": "panscope", "layers": [1], "width": 128, "sparsity": 8, "architecture": "batchtopk"}],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run on the model that ships."""
    out = tmp_path_factory.mktemp("runs") / "small"
    results = api.train(SUITE, out)
    assert results is not None
    assert list(results) == api.open_run(out).coder_names()
    return out


def test_tables_of_a_run(run: Path) -> None:
    opened = api.open_run(run)
    (name,) = opened.coder_names()
    assert opened.labels() == ["held_out"]
    frame = opened.results()
    assert frame.loc[0, "coder"] == name
    assert frame.loc[0, "fvu"] == opened.evaluation(name)["fvu"] == opened.table().to_pylist()[0]["fvu"]
    training = opened.training()
    assert set(training["coder"]) == {name} and training["loss"].notna().all()
    assert opened.path == run and opened.coder(name).width == 128
    with pytest.raises(UserError, match="has no evaluation 'long': it has held_out"):
        opened.table("long")
    for call in (opened.table, lambda label: opened.evaluation(name, label)):
        with pytest.raises(UserError, match=r"has no evaluation '\.\./x': it has held_out"):
            call("../x")
    for nobody in ("nobody", "../x"):
        with pytest.raises(UserError, match=f"has no coder '{nobody}': it has {name}"):
            opened.evaluation(nobody)
    with pytest.raises(UserError, match="not a run folder"):
        api.open_run(run / "coders")


def test_another_evaluation(run: Path) -> None:
    results = api.evaluate(run, EvalRequest(label="again", tokens=300))
    assert results is not None
    opened = api.open_run(run)
    assert opened.labels() == ["held_out", "again"]
    assert opened.results("again").loc[0, "tokens"] < opened.results().loc[0, "tokens"]


def test_a_request_as_a_dict(run: Path) -> None:
    text = {"text": ["panscope://demo"], "context": 32, "sequences": 8}
    results = api.evaluate(run, {"label": "short", "tokens": 200, "data": text, "model": {"device": "cpu"}})
    assert results is not None
    (found,) = results.values()
    assert found.fields["evaluated_on"]["context"] == 32
    given = api.EvalRequest(
        "short-2", tokens=200, data=api.DataConfig(**text), model=api.LanguageModelConfig(device="cpu")
    )
    again = api.evaluate(run, given)
    assert again is not None and next(iter(again.values())).fvu == found.fvu
    with pytest.raises(UserError, match="the request: the key 'tokns' is unknown; did you mean 'tokens'"):
        api.evaluate(run, {"tokns": 3})
    with pytest.raises(UserError, match="the request: data: the key 'txt' is unknown; did you mean 'text'"):
        api.evaluate(run, {"label": "a", "data": {"txt": []}})
    whole = api.evaluate(run, {"label": "whole", "tokens": 200, "data": {"text": ["panscope://demo"], "held_out": 0}})
    assert whole is not None
    suite = api.open_run(run).results("whole")
    assert next(iter(whole.values())).fields["evaluated_on"]["context"] > 32 and len(suite) == 1  # the run's own
    wrong = {"label": 5, "tokens": "many", "share": "1/2", "coder_dtype": "nope", "splice": "none", "data": "s.jsonl"}
    for name, value in wrong.items():
        with pytest.raises(UserError, match=f"the request: {name} is {value!r}: "):
            api.evaluate(run, {"label": "a"} | {name: value})
    table: Any = text
    with pytest.raises(UserError, match="data or model is a dict: make it a DataConfig"):
        api.EvalRequest("a", data=table)


def test_a_model_by_its_name(tmp_path: Path) -> None:
    assert api.load_model("panscope://demo").n_layers == api.load_model(api.LanguageModelConfig()).n_layers
    with pytest.raises(UserError, match="cannot be loaded"):
        api.load_model(tmp_path)


def test_suites_by_name_and_mistakes(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"suite 'nothing' is neither a file nor a built-in suite: give a \.toml file or one of"
    ):
        api.train("nothing", tmp_path / "out")
    with pytest.raises(UserError, match="does not exist"):
        api.train(tmp_path / "a.toml", tmp_path / "out")
    with pytest.raises(UserError, match="already exists"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "x").write_text("")
        api.train("demo", tmp_path / "out")


def test_the_guide_runs_as_it_stands(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of the guide, one after the other, on the small run."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    (run.parent / "runs").mkdir(exist_ok=True)
    if not (run.parent / "runs" / "demo").exists():
        (run.parent / "runs" / "demo").symlink_to(run)
    monkeypatch.chdir(run.parent)
    space: dict[str, Any] = {}
    exec("\n".join(blocks), space)
    assert space["logits"].shape == space["steered"].shape
    assert torch.allclose(space["logits"], space["same"], atol=1e-5)
    assert not torch.allclose(space["logits"], space["steered"], atol=1e-3)


def test_the_api_defines_nothing() -> None:
    tree = ast.parse((REPOSITORY / "panscope" / "api" / "__init__.py").read_text(encoding="utf-8"))
    assert all(isinstance(node, ast.Import | ast.ImportFrom | ast.Expr | ast.Assign) for node in tree.body)
