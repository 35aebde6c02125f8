"""Train and evaluate from a notebook: the stages of a run without a terminal."""

import dataclasses
import typing
from pathlib import Path
from typing import Any

from panscope import builtin
from panscope.config import Config, checked, read_toml, unknown_key
from panscope.data.documents import DataConfig
from panscope.lms.load import LanguageModelConfig, load
from panscope.plan.plan import SuiteConfig
from panscope.runs import stages
from panscope.runs.eval_files import Results
from panscope.runs.evaluation import HELD_OUT_REQUEST, EvalRequest, evaluate_run
from panscope.runs.reporter import Reporter, Silent
from panscope.runs.run import RunFolder
from panscope.storage.locks import locked
from panscope.types import UserError

Suite = SuiteConfig | dict[str, Any] | Path | str


def train(suite: Suite, out: Path | str | None = None, *, reporter: Reporter | None = None) -> Results | None:
    """Train, save and evaluate a suite: a SuiteConfig, its tables as a dict, a .toml file or a built-in suite's name.

    Architectures and recipes are those of Bricken et al. 2023 (ReLU), Gao et al. 2024 (TopK), Bussmann et al. 2024
    (BatchTopK) and 2025 (Matryoshka), Rajamanoharan et al. 2024a (gated) and 2024b (JumpReLU), Lieberum et al. 2024
    (Gemma Scope) and He et al. 2024 (Llama Scope); docs/recipes.md has each number's source. The run folder `out`
    (`runs/<name>` where it is left out) must not exist; one that does is gone on with by `panscope train --resume`.
    Gives every coder's eval.json (docs/reference.md explains and cites every number), or None where it was stopped by
    Ctrl-C. Raises UserError, before anything is written, for what cannot be.
    """
    config = _suite(suite)
    return stages.start(config, Path(out or Path("runs") / config.name), reporter or Silent())


def evaluate(
    run: Path | str, request: EvalRequest | dict[str, Any] = HELD_OUT_REQUEST, *, reporter: Reporter | None = None
) -> Results | None:
    """Measure every coder of a run, on its held-out text or as `request` says, and write what came out into the run.

    `request` is a Request or its fields as a dict, such as
    `{"label": "other", "data": {"text": ["other.jsonl"], "held_out": 0}}`. Gives every coder's eval.json, or None where
    the request is a share of the work and others have not ended theirs: variance unexplained (fvu), L0, losses in nats
    and the share of them recovered (Bricken et al. 2023), shrinkage (Rajamanoharan et al. 2024a) and more, all in
    docs/reference.md. Raises UserError for a request that is none, where there is nothing to measure, or where another
    process works on the run.
    """
    request = _request(request)
    folder = RunFolder.open(run)
    suite = stages.read_suite(folder.suite_file)
    lm = load(request.model or suite.model)
    if request.share.of > 1:
        return evaluate_run(folder, suite, lm, reporter or Silent(), request)
    with locked(folder.path):
        return evaluate_run(folder, suite, lm, reporter or Silent(), request)


def _request(request: EvalRequest | dict[str, Any]) -> EvalRequest:
    if isinstance(request, EvalRequest):
        return request
    known = [field.name for field in dataclasses.fields(EvalRequest)]
    for key in request:
        if key not in known:
            raise UserError(unknown_key(key, "the request", known))
    kinds: dict[str, type[Config]] = {"data": DataConfig, "model": LanguageModelConfig}
    tables: dict[str, Any] = {
        name: kind.read(request[name], f"the request: {name}")
        for name, kind in kinds.items()
        if isinstance(request.get(name), dict)
    }
    hints = typing.get_type_hints(EvalRequest)
    rest = {name: checked(hints[name], value, f"the request: {name}") for name, value in (request | tables).items()}
    return EvalRequest(**rest)


def _suite(suite: Suite) -> SuiteConfig:
    if isinstance(suite, SuiteConfig):
        return suite
    if isinstance(suite, dict):
        return SuiteConfig.read(suite, "the suite")
    built_in = builtin.SUITES / f"{suite}.toml"
    path = Path(suite) if Path(suite).suffix == ".toml" else built_in
    if path == built_in and not path.is_file():
        known = ", ".join(sorted(one.stem for one in builtin.SUITES.glob("*.toml")))
        raise UserError(f"suite {str(suite)!r} is neither a .toml file nor a built-in suite: give one of {known}")
    return SuiteConfig.read(read_toml(path), str(suite))
