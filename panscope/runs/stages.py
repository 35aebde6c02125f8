"""A run from end to end: plan -> train -> save -> evaluate, each stage safe to repeat after a crash."""

from pathlib import Path

from panscope.coders import files as store
from panscope.cost.memory import check_memory, estimate_memory
from panscope.data.documents import open_documents
from panscope.data.tokens import TokenStream
from panscope.lms.facts import facts_of
from panscope.lms.hf_versions import untested_release
from panscope.lms.load import device_of, load, memory_bytes
from panscope.lms.model import LanguageModel
from panscope.plan.plan import Plan, SuiteConfig, plan
from panscope.plan.warnings import warn_inactive_coders, warn_large_penalty, warn_of_results
from panscope.runs.eval_files import Results
from panscope.runs.evaluation import check_precision, evaluate_run
from panscope.runs.kernel_choice import KernelChoice, choose_kernels
from panscope.runs.reporter import Reporter
from panscope.runs.run import RunFolder
from panscope.runs.shutdown import StopRequest
from panscope.runs.training import TrainingState, fresh, restored, save_coders, train_suite
from panscope.storage.locks import locked
from panscope.storage.sealed import read_sealed, read_sealed_toml, write_sealed_toml
from panscope.types import UserError


def start(suite: SuiteConfig, out: Path, reporter: Reporter, *, profile: bool = False) -> Results | None:
    """Train, save and evaluate a suite in the new folder `out`; None if it was asked to stop (then it can resume).

    `profile` says once where the time of a step goes. Nothing is written before model, text and plan have proved good.
    """
    RunFolder.check_free(out)
    planned = planned_from(suite)
    kernels = _kernels(planned)
    lm = load(suite.model)
    _check_held_out(planned.suite, lm)
    _say_planned(planned, kernels, reporter)
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
        if results[name].get("weights") != store.read_config(run.coder(name))["xxh3"]:
            raise UserError(f"the file {str(path)!r} is of other weights than the coder has now; {then}")
    return results


def _resume(run: RunFolder, reporter: Reporter, device: str | None, *, profile: bool) -> Results | None:
    suite = read_suite(run.suite_file)
    if device is not None:
        suite = suite.replace(model=suite.model.replace(device=device))
    planned = planned_from(suite)
    kernels = _kernels(planned)
    lm = load(suite.model)
    _say_planned(planned, kernels, reporter)
    state = restored(planned, lm, run, kernels, reporter)
    if state.step and not run.train_log.exists():
        reporter.say(f"{run.train_log} is missing: it goes on without its lines up to step {state.step}")
    return _go_on(run, planned, lm, state, kernels, reporter, profile=profile)


def planned_from(suite: SuiteConfig) -> Plan:
    """The plan of a suite, from configuration alone: no weight is read."""
    return plan(suite, facts_of(suite.model), memory_bytes(suite.model))


def _say_planned(planned: Plan, kernels: KernelChoice, reporter: Reporter) -> None:
    reporter.planned(planned)
    for line in (kernels.line, untested_release(), *warn_large_penalty(planned)):
        if line is not None:
            reporter.say(line)


def _kernels(planned: Plan) -> KernelChoice:
    """The kernels in force here; raises UserError where the suite does not fit into this device's memory."""
    model = planned.suite.model
    kernels = choose_kernels(planned, device_of(model))
    check_memory(planned, estimate_memory(planned, facts_of(model), kernels.of), memory_bytes(model))
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
    assert results is not None, "no other process has a part of it"
    run.write_status("done")
    if line := warn_inactive_coders(results):
        reporter.say(line)
    for line in warn_of_results(results):
        reporter.say(f"look at this: {line}")
    check_precision(results, planned.suite.eval.precision)
    return results
