"""Every verb of the command line as a function: typed arguments in, typed results out.

Each shows its progress in a terminal or notebook unless `quiet`; `listeners` are told too (`panscope.api.tracker`
makes those of Weights & Biases and TensorBoard). Every mistake is a UserError: one sentence that says what to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panscope.activations.store.manifest import Manifest
from panscope.activations.store.opening import open_files
from panscope.activations.store.verify import verify
from panscope.api.listening import reporting
from panscope.api.results import EvaluationResults
from panscope.api.suites import Suite, request_of, suite_of
from panscope.config import expanded
from panscope.cost.estimate import Cost, cost
from panscope.cost.gpus import gpu_named
from panscope.cost.shares import plan_share
from panscope.data.prompts import PROMPT, read_prompts
from panscope.events import Listener
from panscope.formats.base import ImportOptions
from panscope.lms.facts import facts_of
from panscope.lms.hf_versions import untested_release
from panscope.lms.load import LanguageModelConfig, load
from panscope.planning.plan import SuiteConfig
from panscope.publishing import export as exporting
from panscope.publishing import import_coders as importing
from panscope.publishing.publish import Published, PublishOptions, publish_run
from panscope.reporting.label import drawing
from panscope.reporting.runs import read_runs
from panscope.reporting.write import Written, check_place, write_report
from panscope.runs import collection, geometry, merging, rollouts, saebench, stages
from panscope.runs.collection import StoreOptions
from panscope.runs.eval_request import HELD_OUT_REQUEST, EvalRequest
from panscope.runs.finished_coder import HELD_OUT
from panscope.runs.geometry import Entry, GeometryOptions
from panscope.runs.rollouts import RolloutConfig, Rollouts, check_new
from panscope.runs.run import Run
from panscope.runs.serving import ServeOptions, open_server
from panscope.serving.server.server import ActivationServer
from panscope.types import UserError

_CACHE_BYTES = 16 << 30
"""What may be kept of a remote store that is checked."""


@dataclass(frozen=True)
class GeometryResult:
    """One comparison of decoder vectors that `compare_decoders` made."""

    kind: str
    """mmcs, matching, splitting, neighbourhood or tokens."""
    entry: Entry
    """What geometry/summary.json says of it; docs/geometry.md explains every number."""


def plan(suite: Suite, *, gpu: str = "H100", gpus: int = 1, share: str | None = None) -> Cost:
    """Which coders a suite trains (`.plan.coders`), and what that costs: compute in FLOP and device-hours, memory and
    disk in bytes. No weight is read.

    `gpu` is the name of a device, or the beginning of one. `share`, such as "3/35", plans that part of the suite, as
    `train` would train it. Raises UserError for a suite that makes no sense.
    """
    if gpus < 1:
        raise UserError(f"gpus is {gpus}: give how many there are, at least 1")
    config, device = suite_of(suite, share), gpu_named(gpu)
    facts = facts_of(config.model)
    return cost(plan_share(config, facts, device.memory_bytes), facts, device, gpus)


def train(
    suite: Suite = "demo",
    out: Path | str | None = None,
    *,
    share: str | None = None,
    profile: bool = False,
    accept_changed_model: bool = False,
    quiet: bool = False,
    listeners: Sequence[Listener] = (),
) -> EvaluationResults | None:
    """Train, save and evaluate a suite: a SuiteConfig, its tables as a dict, a .toml file or a built-in suite's name.

    Architectures and recipes are those of Bricken et al. 2023 (ReLU), Gao et al. 2024 (TopK), Bussmann et al. 2024
    (BatchTopK) and 2025 (Matryoshka), Rajamanoharan et al. 2024a (gated) and 2024b (JumpReLU), Lieberum et al. 2024
    (Gemma Scope) and He et al. 2024 (Llama Scope); docs/recipes.md has each number's source. The run folder `out` must
    not exist; left out, it is `runs/<name>`, numbered where that exists. `share`, such as "3/35", trains that part of
    the coders, each as all of them together would be trained. `profile` says once where the time of a step goes.
    `accept_changed_model` trains on stored rows although the model is not the one that they were collected from, and
    records what differs. Gives what was measured of every coder, or None where it was stopped by Ctrl-C; `resume`
    continues it. Raises UserError, before anything is written, for what cannot be.
    """
    config = suite_of(suite, share)
    run = Run(free_folder(config) if out is None else out)
    with reporting(quiet, listeners) as reporter:
        found = stages.start(config, run.path, reporter, profile=profile, accept_changed_model=accept_changed_model)
    return None if found is None else EvaluationResults.of(run, HELD_OUT, found)


def free_folder(suite: SuiteConfig) -> Path:
    """runs/NAME, or the first of runs/NAME-2, runs/NAME-3 ... that does not exist."""
    name = suite.folder_name
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def resume(
    run: Path | str,
    *,
    device: str | None = None,
    profile: bool = False,
    accept_changed_model: bool = False,
    quiet: bool = False,
    listeners: Sequence[Listener] = (),
) -> EvaluationResults | None:
    """Continue a training that was stopped or killed, bit for bit as if it had not been (on the same device).

    Gives what `train` gives; a finished run is left as it is. Raises UserError where there is no run, where another
    process works on it, where the text has changed, or the language model unless `accept_changed_model`, which records
    what differs.
    """
    folder = Run.open(run)
    with reporting(quiet, listeners) as reporter:
        found = stages.resume(folder, reporter, device, profile=profile, accept_changed_model=accept_changed_model)
    return None if found is None else EvaluationResults.of(folder, HELD_OUT, found)


def merge(
    runs: Sequence[Path | str], out: Path | str, *, quiet: bool = False, listeners: Sequence[Listener] = ()
) -> EvaluationResults:
    """Join finished runs of one suite, such as all its shares, to the new run `out`; nothing is computed again.

    Gives what was measured of every coder on held-out text. Raises UserError, before anything is written, for runs that
    are not finished or not of one suite, model, text and evaluation, and where a share is missing or a coder is in two.
    """
    with reporting(quiet, listeners) as reporter:
        found = merging.merge([Run.open(run) for run in runs], expanded(out), reporter)
    return EvaluationResults.of(Run.open(out), HELD_OUT, found)


def evaluate(
    run: Path | str,
    request: EvalRequest | dict[str, Any] = HELD_OUT_REQUEST,
    *,
    quiet: bool = False,
    listeners: Sequence[Listener] = (),
) -> EvaluationResults | None:
    """Measure every coder of a run, on its held-out text or as `request` says, and write what came out into the run.

    `request` is an EvalRequest or its fields as a dict, such as `{"data": {"text": ["other.jsonl"], "held_out": 0}}`.
    Gives what was measured of every coder, or None where the request is a shard of the work and others have not ended
    theirs: variance unexplained (fvu), L0, losses in nats and the share of them recovered (Bricken et al. 2023),
    shrinkage (Rajamanoharan et al. 2024a) and more, all in docs/reference.md. Raises UserError for a request that is
    none, where there is nothing to measure, or where another process works on the run.
    """
    folder, asked = Run.open(run), request_of(request)
    with reporting(quiet, listeners) as reporter:
        found = stages.evaluate(folder, asked, reporter)
    return None if found is None else EvaluationResults.of(folder, asked.labelled(folder.suite).label, found)


def write_saebench(run: Path | str, out: Path | str, label: str = "saebench") -> list[Path]:
    """Write SAEBench's JSON files of an evaluation that was made with `saebench` into the folder `out`, one a coder."""
    return saebench.write_saebench(Run.open(run), expanded(out), label)


def collect(
    suite: Suite,
    out: Path | str,
    options: StoreOptions | None = None,
    *,
    quiet: bool = False,
    listeners: Sequence[Listener] = (),
) -> Manifest:
    """Store the activations of all sites of a suite in the folder `out`, in one pass of the language model.

    The same call continues a store that was interrupted, and adds sites to one that is complete. Raises UserError if
    the folder holds anything else, or rows of another text or model.
    """
    with reporting(quiet, listeners) as reporter:
        return collection.collect(suite_of(suite), expanded(out), options or StoreOptions(), reporter)


def verify_store(store: str) -> list[str]:
    """Compare every file of a store, a folder or an address, with its checksums: a sentence for each damaged file."""
    return verify(open_files(store, cache=None, cache_bytes=_CACHE_BYTES))


def serve(
    store: str, options: ServeOptions | None = None, *, quiet: bool = False, listeners: Sequence[Listener] = ()
) -> ActivationServer:
    """A server of one slice of a store, to be used in a `with`: trainers take their rows from its `address`.

    Raises UserError for options that do not fit the store, and where it would listen to others without a token.
    """
    with reporting(quiet, listeners) as reporter:
        return open_server(store, options or ServeOptions(), reporter.say)


def compare_decoders(
    run: Path | str,
    options: GeometryOptions | None = None,
    *,
    quiet: bool = False,
    listeners: Sequence[Listener] = (),
) -> list[GeometryResult]:
    """Compare the decoder vectors of a run's coders with each other, with chance and with tokens; into RUN/geometry.

    Raises UserError for coders or latents that are not there, or runs that have nothing to compare.
    """
    with reporting(quiet, listeners) as reporter:
        found = geometry.compare_decoders(Run.open(run), options or GeometryOptions(), reporter)
    return [GeometryResult(entry["kind"], entry) for entry in found]


def make_rollouts(
    model: LanguageModelConfig | str,
    prompts: Path | str | list[str],
    out: Path | str,
    config: RolloutConfig | None = None,
    *,
    column: str = PROMPT,
    quiet: bool = False,
    listeners: Sequence[Listener] = (),
) -> Rollouts:
    """Sample a language model's responses to prompts (a list, or a file of them) into the new JSON-lines file `out`.

    `column` is the field of the prompt in the lines of a .jsonl file. Raises UserError where `out` exists, and where no
    prompt leaves space for a response in the context.
    """
    asked = LanguageModelConfig(path=model) if isinstance(model, str) else model
    texts = prompts if isinstance(prompts, list) else read_prompts(expanded(prompts), column)
    file = expanded(out)
    check_new(file)
    with reporting(quiet, listeners) as reporter:
        for line in untested_release():
            reporter.warn(line)
        return rollouts.make_rollouts(load(asked), texts, config or RolloutConfig(), file, reporter)


def report(
    runs: Path | str | Sequence[Path | str], out: Path | str | None = None, *, label: str | None = None
) -> Written:
    """Draw every figure of one run, or of several in the same figures, as one page that opens without a network.

    `out` is the report's folder, by default `report` in the run's; several runs need it. `label` names the evaluation
    whose numbers are drawn; left out, that on held-out text, or the only one that all runs have. Raises UserError
    where there is nothing to draw, or `out` holds anything but a report.
    """
    folders = [expanded(one) for one in ([runs] if isinstance(runs, Path | str) else runs)]
    if not folders:
        raise UserError("runs is empty: give the folder of a run, or of several")
    if out is None and len(folders) > 1:
        raise UserError(f"out is missing: a report on {len(folders)} runs belongs to none of them, so say where")
    place = folders[0] / "report" if out is None else expanded(out)
    results = drawing(read_runs(folders), label)
    check_place(place)
    return write_report(results, place)


def import_coders(
    source: Path | str | Sequence[Path | str],
    out: Path | str,
    options: ImportOptions | None = None,
    *,
    format: str | None = None,
    revision: str | None = None,
    quiet: bool = False,
    listeners: Sequence[Listener] = (),
) -> importing.Imported:
    """Read the coders of another tool into the new run folder `out`.

    `source` is a file or folder of one coder, a folder of many, or an address on the Hugging Face hub: a repository
    `org/repo`, or a folder of one coder or of many in it, `org/repo:folder`, in which `*` means any characters of one
    folder's name; or several of these. A path that exists takes precedence over an address. Only the files that are
    read are downloaded, at `revision` (a branch, tag or commit), and the commit is recorded.

    `format` is recognised by the files where it is left out; `options` say what the files do not. Nothing is ever run
    from a file. Raises UserError for what cannot be downloaded or read, or does not fit its language model; then there
    is no folder.
    """
    sources = [source] if isinstance(source, Path | str) else list(source)
    with reporting(quiet, listeners) as reporter:
        asked = options or ImportOptions()
        return importing.import_coders(sources, Path(out), asked, format=format, revision=revision, reporter=reporter)


def export(coder: Path | str, format: str, out: Path | str) -> list[Path]:
    """Write a coder's folder, or every coder of a run, in another tool's format into the new folder `out`.

    Gives the folders written. Raises UserError for a coder that the format cannot hold; then nothing is written.
    """
    return exporting.export(Path(coder), format, Path(out))


def publish(
    run: Path | str,
    to: str,
    options: PublishOptions | None = None,
    *,
    quiet: bool = False,
    listeners: Sequence[Listener] = (),
) -> Published:
    """Publish every coder of a run as the Hugging Face hub's repository `to`, with a model card.

    The same call continues what failed. Raises UserError where the hub refuses, or cannot be reached.
    """
    with reporting(quiet, listeners) as reporter:
        return publish_run(Run.open(run), to, options or PublishOptions(), reporter)
