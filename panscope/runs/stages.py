"""A run from end to end: plan -> train -> save -> evaluate, each stage safe to repeat after a crash."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from panscope.cost.shares import plan_share
from panscope.data.documents import open_documents
from panscope.data.tokens import TokenStream
from panscope.events import Reporter, RunClosed, RunOpened
from panscope.lms.facts import facts_of
from panscope.lms.hf_versions import untested_release
from panscope.lms.load import load, memory_bytes
from panscope.planning.plan import Plan, SuiteConfig
from panscope.planning.warnings import warn_large_penalty
from panscope.runs.eval_files import Results
from panscope.runs.eval_request import EvalRequest
from panscope.runs.evaluation import check_has_text, check_precision, evaluate_run
from panscope.runs.finished_coder import HELD_OUT
from panscope.runs.kernel_choice import ignored_precision
from panscope.runs.result_warnings import warnings_of_results
from panscope.runs.run import Run
from panscope.runs.training import TrainingRun
from panscope.storage.locks import locked
from panscope.storage.sealed import write_sealed_toml
from panscope.types import UserError


def start(
    suite: SuiteConfig, out: Path, reporter: Reporter, *, profile: bool = False, accept_changed_model: bool = False
) -> Results | None:
    """Train, save and evaluate a suite in the new folder `out`; None if it was asked to stop (then it can resume).

    `accept_changed_model` trains on stored rows although the model is not the one that they were collected from.
    `profile` says once where the time of a step goes. Nothing is written before model, text and plan have proved good.
    """
    Run.check_free(out)
    training = TrainingRun(Run(out), planned_from(suite), reporter, accept_changed_model=accept_changed_model)
    _check_held_out(training)
    _say_planned(training)
    training.initialise()
    run = Run.create(out)
    with locked(run.path):
        Run.check_free(out)
        write_sealed_toml(run.suite_file, training.plan.suite.model_dump(mode="json"))
        return _finish(training, profile=profile)


def resume(
    run: Run,
    reporter: Reporter,
    device: str | None = None,
    *,
    profile: bool = False,
    accept_changed_model: bool = False,
) -> Results | None:
    """Continue a run from its newest checkpoint, bit for bit as if it had never stopped (on the same device).

    A finished run is left as it is, and its stored results are returned. Raises UserError if another process is at it,
    if the text has changed, or the language model unless `accept_changed_model`.
    """
    suite = run.suite
    if run.status().get("stage") == "done":
        reporter.say("this run is finished already")
        return stored_results(run)
    with locked(run.path):
        run.sweep()
        if device is not None:
            suite = suite.replace(model=suite.model.replace(device=device))
        training = TrainingRun(run, planned_from(suite), reporter, accept_changed_model=accept_changed_model)
        _say_planned(training)
        training.restore()
        if training.step and not run.train_log.exists():
            reporter.say(f"{run.train_log} is missing: it is continued without its lines up to step {training.step}")
        return _finish(training, profile=profile)


def evaluate(run: Run, request: EvalRequest, reporter: Reporter) -> Results | None:
    """Measure every coder of a finished run as `request` says; None where other processes have not ended their parts.

    Raises UserError where there is nothing to measure, or where another process works on the run.
    """
    suite = run.suite
    if request.data is None:
        check_has_text(run)
    request = request.labelled(suite)
    with nullcontext() if request.share.of > 1 else locked(run.path):
        lm = load(request.model or suite.model)
        for line in untested_release():
            reporter.warn(line)
        with _opened(run, None, reporter):
            results = evaluate_run(run, suite, lm, reporter, request)
            for line in warnings_of_results(run, results or {}):
                reporter.warn(line)
    return results


def stored_results(run: Run) -> Results:
    """The eval.json of every coder; raises UserError if one is missing, damaged or of something else."""
    results, again = {}, f"measure again by `panscope eval {run.path}`"
    for coder in run.coders():
        found = coder.evaluation(HELD_OUT)
        if found is None or found.about.get("part") != HELD_OUT:
            wrong = "is missing" if found is None else "is not of held-out text"
            raise UserError(f"the file {str(coder.folder / 'eval.json')!r} {wrong}; {again}")
        results[coder.name] = found.content
    return results


def planned_from(suite: SuiteConfig) -> Plan:
    """The plan of a suite or of its share, from configuration alone: no weight is read."""
    return plan_share(suite, facts_of(suite.model), memory_bytes(suite.model))


def _say_planned(training: TrainingRun) -> None:
    plan, kernels = training.plan, training.kernels
    for line in (*plan.summary(), *plan.fitted(), kernels.line, *ignored_precision(plan, kernels)):
        training.reporter.say(line)
    for line in (*untested_release(), *warn_large_penalty(plan)):
        training.reporter.warn(line)


def _check_held_out(training: TrainingRun) -> None:
    """Raise UserError now, and not after hours of training, if there is no text to evaluate on."""
    suite = training.plan.suite
    documents = open_documents(suite.data)
    next(TokenStream(documents, training.lm.tokenizer, suite.data, part="held_out", seed=suite.seed, epochs=1))


@contextmanager
def _opened(run: Run, step: int | None, reporter: Reporter) -> Iterator[None]:
    """Tells listeners that work on the run folder begins and ends."""
    reporter.tell(RunOpened(run.path, run.tables, step))
    try:
        yield
    finally:
        reporter.tell(RunClosed())


def _finish(training: TrainingRun, *, profile: bool) -> Results | None:
    """Train, save and evaluate; None if it was asked to stop."""
    run, plan, reporter = training.run, training.plan, training.reporter
    with _opened(run, training.step, reporter):
        run.write_status("training", steps=plan.steps)
        if not training.train(profile=profile):
            run.write_status("stopped", steps=plan.steps)
            return None
        if training.source.passes > 1:
            reporter.say(f"the text was read {training.source.passes} times; more text is better than more passes")
        run.write_status("saving")
        training.save_coders()
        run.write_status("evaluating")
        results = evaluate_run(run, plan.suite, training.lm, reporter)
        assert results is not None, "no other process has a part of it"
        run.write_status("done")
        for line in warnings_of_results(run, results, run.read_log()):
            reporter.warn(line)
    check_precision(results, plan.suite.eval.precision)
    return results
