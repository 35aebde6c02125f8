"""A run from end to end: plan -> train -> save -> evaluate, each stage safe to repeat after a crash."""

from pathlib import Path
from typing import Any

from panscope.coders import store
from panscope.data.documents import DataConfig, open_documents
from panscope.data.source import Part
from panscope.data.tokens import TokenStream
from panscope.evals.run import evaluate
from panscope.evals.table import write_results
from panscope.lms.facts import facts_of
from panscope.lms.load import device_of, load, memory_bytes
from panscope.lms.model import LanguageModel
from panscope.records import RunFolder, locked, read_sealed, read_sealed_toml, write_sealed, write_sealed_toml
from panscope.suite.kernels import KernelChoice, choose_kernels
from panscope.suite.plan import Plan, SuiteConfig, plan
from panscope.suite.reporter import Reporter
from panscope.suite.room import check_room, need
from panscope.suite.signals import StopRequest
from panscope.suite.training import TrainingState, fresh, restored, save_coders, train_suite
from panscope.types import UserError

Results = dict[str, dict[str, Any]]


def start(suite: SuiteConfig, out: Path, reporter: Reporter, *, profile: bool = False) -> Results | None:
    """Train, save and evaluate a suite in the new folder `out`; None if it was asked to stop (then it can resume).

    `profile` says once where the time of a step goes. Nothing is written before model, text and plan have proved good.
    """
    RunFolder.check_free(out)
    planned = planned_from(suite)
    kernels = _kernels(planned)
    lm = load(suite.model)
    reporter.planned(planned)
    reporter.say(kernels.line)
    _check_held_out(planned.suite, lm)
    state = fresh(planned, lm, kernels, reporter)
    run = RunFolder.create(out)
    with locked(run.path):
        RunFolder.check_free(out)
        write_sealed_toml(run.suite_file, planned.suite.model_dump(mode="json"))
        return _go_on(run, planned, lm, state, kernels, reporter, profile=profile)


def resume(run: RunFolder, reporter: Reporter, device: str | None = None, *, profile: bool = False) -> Results | None:
    """Go on with a run from its newest checkpoint, bit for bit as if it had never stopped (on the same device).

    A finished run is left as it is, and its stored results are returned. Raises UserError if another process is at it.
    """
    if run.status().get("stage") == "done":
        reporter.say("this run is finished already")
        return stored_results(run)
    with locked(run.path):
        run.sweep()
        return _resume(run, reporter, device, profile=profile)


def stored_results(run: RunFolder) -> Results:
    """The eval.json of every coder; raises UserError if one is missing, damaged or of something else."""
    results, then = {}, f"measure again by `panscope eval {run.path}`"
    for name in run.coder_names():
        path = run.coder(name) / "eval.json"
        results[name] = read_sealed(path, then=then)
        if (results[name].get("coder"), results[name].get("evaluated_on", {}).get("part")) != (name, "held_out"):
            raise UserError(f"the file {str(path)!r} is not of this coder on held-out text; {then}")
    return results


def _resume(run: RunFolder, reporter: Reporter, device: str | None, *, profile: bool) -> Results | None:
    suite = read_suite(run.suite_file)
    if device is not None:
        suite = suite.replace(model=suite.model.replace(device=device))
    planned = planned_from(suite)
    kernels = _kernels(planned)
    lm = load(suite.model)
    reporter.planned(planned)
    reporter.say(kernels.line)
    state = restored(planned, lm, run, kernels, reporter)
    if state.step and not run.train_log.exists():
        reporter.say(f"{run.train_log} is missing: it goes on without its lines up to step {state.step}")
    return _go_on(run, planned, lm, state, kernels, reporter, profile=profile)


def planned_from(suite: SuiteConfig) -> Plan:
    """The plan of a suite, from configuration alone: no weight is read."""
    return plan(suite, facts_of(suite.model), memory_bytes(suite.model))


def _kernels(planned: Plan) -> KernelChoice:
    """The kernels in force here; raises UserError where the suite does not fit into this device's memory."""
    model = planned.suite.model
    kernels = choose_kernels(planned, device_of(model))
    check_room(planned, need(planned, facts_of(model), kernels.of), memory_bytes(model))
    return kernels


def read_suite(path: Path) -> SuiteConfig:
    """The suite.toml of a run, checked; raises UserError if it was changed, but for who deletes its first line."""
    return SuiteConfig.read(read_sealed_toml(path), str(path))


def _check_held_out(suite: SuiteConfig, lm: LanguageModel) -> None:
    """Raise UserError now, and not after hours of training, if there is no text to evaluate on."""
    documents = open_documents(suite.data)
    next(TokenStream(documents, lm.tokenizer, suite.data, part="held_out", seed=suite.seed, epochs=1))


def _go_on(
    run: RunFolder,
    planned: Plan,
    lm: LanguageModel,
    state: TrainingState,
    kernels: KernelChoice,
    reporter: Reporter,
    *,
    profile: bool,
) -> Results | None:
    with StopRequest(lambda: reporter.say("stopping after this step; everything is saved first")) as stop:
        state.source.stop_when(lambda: bool(stop))
        run.write_status("training", steps=planned.steps)
        if not train_suite(planned, state, run, reporter, stop, kernels=kernels, profile=profile):
            run.write_status("stopped", steps=planned.steps)
            return None
    if state.source.passes > 1:
        times = state.source.passes
        reporter.say(f"the text was gone through {times} times; more text would be better than more passes")
    run.write_status("saving")
    save_coders(planned, lm, state, run, reporter)
    run.write_status("evaluating")
    results = evaluate_run(run, planned.suite, lm, reporter)
    run.write_status("done")
    return results


def evaluate_run(
    run: RunFolder, suite: SuiteConfig, lm: LanguageModel, reporter: Reporter, data: DataConfig | None = None
) -> Results:
    """Measure every coder of a run and write `eval.json` beside each and `results.parquet`.

    On the held-out share of the suite's text, up to `eval.tokens` tokens; or, with `data`, on all of that text, written
    to `eval-text.json` and `results-text.parquet`, so that the held-out numbers stay.
    """
    names = run.coder_names()
    if not names:
        raise UserError(f"the run {str(run.path)!r} has no finished coder yet: go on with `panscope train --resume`")
    coders = {name: store.load(run.coder(name)) for name in names}
    for wired in coders.values():
        wired.coder.to(lm.device)
    part: Part = "held_out" if data is None else "all"
    chosen = _in_small_batches(
        suite.data if data is None else data, lm, memory_bytes(suite.model.replace(device=str(lm.device)))
    )
    tokens = suite.eval.tokens if data is None else None
    documents = open_documents(chosen)

    def open_tokens() -> TokenStream:
        whole = data is not None
        return TokenStream(documents, lm.tokenizer, chosen, part=part, seed=suite.seed, epochs=1, keep_rest=whole)

    try:
        results = evaluate(
            lm, open_tokens, coders, tokens=tokens, progress=lambda done: reporter.evaluating(done, tokens)
        )
    finally:
        reporter.finished()
    suffix = "" if data is None else "-text"
    text = {"text": list(chosen.text), "part": part, "packing": chosen.packing, "context": chosen.context}
    for name, result in results.items():
        write_sealed(run.coder(name) / f"eval{suffix}.json", result | {"coder": name, "evaluated_on": text})
    facts = {name: _facts(wired) for name, wired in coders.items()}
    flat = {name: {key: value for key, value in result.items() if key != "sites"} for name, result in results.items()}
    write_results(run.path / f"results{suffix}.parquet", flat, facts)
    return results


def _in_small_batches(data: DataConfig, lm: LanguageModel, memory: int) -> DataConfig:
    """`data` with so few sequences a batch that logits and probabilities take at most an eighth of the memory."""
    assert data.context is not None
    bytes_a_sequence = 5 * 4 * data.context * lm.vocabulary
    return data.replace(sequences=max(1, min(data.sequences, memory // 8 // bytes_a_sequence)))


def _facts(wired: Any) -> dict[str, Any]:
    """The columns of results.parquet that say which coder a row is about."""
    wiring, config = wired.wiring, wired.coder.config
    return {
        "wiring": wiring.wiring,
        "layer": wiring.predicts[0].layer if len(wiring.predicts) == 1 else None,
        "reads": " ".join(map(str, wiring.reads)),
        "predicts": " ".join(map(str, wiring.predicts)),
        "architecture": config.architecture,
        "width": config.width,
        "sparsity": config.sparsity,
    }
