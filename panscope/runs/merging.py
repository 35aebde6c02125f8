"""Joins the runs of one suite: those of all its shares, or runs that each trained some of its coders.

The joined run is what one training of all these coders would have left: their folders with every evaluation, the plan
of the whole suite, one training log and the tables of results. Files are hard links where the file system allows it,
and copies elsewhere; the runs that are joined are not changed. The run appears complete or not at all.
"""

import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from panscope.events import Reporter
from panscope.runs.eval_files import Results, write_table
from panscope.runs.finished_coder import HELD_OUT, FinishedCoder, suffix_of
from panscope.runs.run import Run
from panscope.storage.atomic import flush_to_disk, replacing_folder
from panscope.storage.json_lines import JsonLines
from panscope.storage.locks import locked
from panscope.storage.sealed import write_sealed_toml
from panscope.types import UserError

_OF_A_MACHINE = {
    "share", "model.path", "model.device", "data.text", "activations.store", "activations.cache",
    "activations.cache_gib", "activations.servers", "activations.certificate", "activations.buffer_rows",
    "train.step_gib",
}  # fmt: skip
"""Fields of suite.toml in which runs of one suite may differ; what model and text are is compared by their identity."""
_OF_A_SELECTION = {"name", "coders", "train.log_every", "train.checkpoint_every"}
"""Further fields in which they may differ unless they are shares of one suite."""


def merge(runs: Sequence[Run], out: Path, reporter: Reporter) -> Results:
    """Join finished runs of one suite to the new run `out`; the fields of every coder's eval.json.

    Raises UserError, before anything is written, for runs that are not finished or not of one suite, model, text and
    evaluation, where two of them have the same coder, where a share or a coder of the suite is missing, and for files
    that are damaged.
    """
    Run.check_free(out)
    if len(runs) < 2:
        raise UserError("a merge needs at least two runs: name the folders of all runs to join")
    for path, count in Counter(run.path.resolve() for run in runs).items():
        if count > 1:
            raise UserError(f"the run {str(path)!r} is given {count} times: name each run once")
    with ExitStack() as stack:
        for run in runs:
            if os.access(run.path, os.W_OK):
                stack.enter_context(locked(run.path))
        _check_finished(runs)
        _check_one_suite(runs)
        _check_shares(runs)
        coders = [coder for run in runs for coder in run.coders()]
        _check_coders(coders)
        _check_complete(runs, coders)
        labels, log = _labels(coders, reporter), _log(runs)
        _check_files(coders, reporter)
        with replacing_folder(out) as folder:
            return _write(runs, coders, labels, log, Run(folder))


def _check_finished(runs: Sequence[Run]) -> None:
    for run in runs:
        stage = run.status().get("stage")
        if stage != "done":
            raise UserError(
                f"the run {str(run.path)!r} is not finished (its stage is {stage or 'unknown'}): continue it by "
                f"`panscope train --resume {run.path}`"
            )


def _check_one_suite(runs: Sequence[Run]) -> None:
    """Raise UserError naming the first field in which the suites differ."""
    are_shares = any(run.suite.share for run in runs)
    may_differ = _OF_A_MACHINE if are_shares else _OF_A_MACHINE | _OF_A_SELECTION
    first, *others = (dict(_fields(run.suite.model_dump(mode="json"))) for run in runs)
    for run, fields in zip(runs[1:], others, strict=True):
        for name in first.keys() | fields.keys():
            if name not in may_differ and first.get(name) != fields.get(name):
                here = f"{name} is {_brief(first.get(name))} in {str(runs[0].path)!r} and {_brief(fields.get(name))} in"
                raise UserError(f"{here} {str(run.path)!r}: only runs of one suite can be merged")


def _fields(tables: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tables.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_shares(runs: Sequence[Run]) -> None:
    """Raise UserError unless the runs are no shares, or all those of one division."""
    shares = [run.suite.shard for run in runs]
    if not any(run.suite.share for run in runs):
        return
    if len({share.of for share in shares}) > 1:
        raise UserError(f"the runs are shares {', '.join(map(str, shares))} of different divisions: merge those of one")
    missing = sorted({*range(shares[0].of)} - {share.number for share in shares})
    if missing:
        named = ", ".join(f"{number + 1}/{shares[0].of}" for number in missing)
        raise UserError(
            f"the shares {named} are missing: train them by `panscope train SUITE --share K/{shares[0].of}`"
        )


def _check_coders(coders: Sequence[FinishedCoder]) -> None:
    """Raise UserError where two have one name, or are of different models or texts."""
    for name, count in Counter(coder.name for coder in coders).items():
        if count > 1:
            raise UserError(f"coder {name!r} is in {count} of the runs: leave all but one of them out")
    known = [(coder, coder.identity) for coder in coders]
    (first, reference), *others = known
    for coder, identity in others:
        if identity is None or reference is None:
            raise UserError(
                f"coder {(coder if identity is None else first).name!r} does not say what it was trained on"
            )
        changes = reference.model.differences(identity.model)
        if changes:
            raise UserError(
                f"coder {coder.name!r} was trained on another language model than {first.name!r}: "
                f"{' and '.join(changes)}"
            )
        if reference.text != identity.text:
            raise UserError(
                f"coder {coder.name!r} was trained on other text ({', '.join(identity.text)}) than {first.name!r} "
                f"({', '.join(reference.text)})"
            )


def _check_complete(runs: Sequence[Run], coders: Sequence[FinishedCoder]) -> None:
    """Raise UserError where a run has lost a coder that it has trained."""
    planned = len(_tables(runs))
    if len(coders) != planned:
        raise UserError(
            f"the runs have {len(coders):,} coders, and their suite.toml says {planned:,}: take undamaged copies of "
            "the runs; `panscope train --resume RUN` saves a run's coders again once its status.json is deleted"
        )


def _check_files(coders: Sequence[FinishedCoder], reporter: Reporter) -> None:
    """Read every file once, since the runs may be deleted after this; raises UserError for a damaged one."""
    try:
        for done, coder in enumerate(coders):
            reporter.progress("checking files", done, len(coders), "coders")
            coder.check_files()
    finally:
        reporter.ended()


def _tables(runs: Sequence[Run]) -> tuple[dict[str, Any], ...]:
    """The `[[coders]]` tables of all coders; a share's suite.toml has those of the whole suite."""
    suites = [run.suite for run in runs]
    return suites[0].coders if suites[0].share else tuple(table for suite in suites for table in suite.coders)


def _log(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The lines of all training logs, by step and by the coder's name, whatever the order of the runs."""
    return sorted((line for run in runs for line in run.read_log()), key=lambda line: (line["step"], line["coder"]))


def _labels(coders: Sequence[FinishedCoder], reporter: Reporter) -> list[str]:
    """The evaluations that all coders have, made in the same way; those that some lack are said.

    Raises UserError where one label is of different evaluations, and without that of the held-out text.
    """
    every = dict.fromkeys(label for coder in coders for label in coder.labels())
    for label in every:
        lacking = [coder.name for coder in coders if label not in coder.labels()]
        if lacking and label == HELD_OUT:
            raise UserError(
                f"coder {lacking[0]!r} was not evaluated on the held-out text: run `panscope eval` on its run"
            )
        if lacking:
            reporter.warn(
                f"{len(lacking)} of {len(coders)} coders have no evaluation {label!r}: there is no table of it before "
                "`panscope eval` is run again"
            )
            continue
        ways = [_way(coder, label) for coder in coders]
        differing = [key for key in ways[0] if any(way.get(key) != ways[0][key] for way in ways)]
        if differing:
            raise UserError(
                f"the evaluations {label!r} differ in {', '.join(differing)}: evaluate again in the same way"
            )
    return [label for label in every if all(label in coder.labels() for coder in coders)]


def _way(coder: FinishedCoder, label: str) -> dict[str, Any]:
    found = coder.evaluation(label)
    assert found is not None
    return found.definition | {"number of sequences": found.content.get("sequences")}


def _write(
    runs: Sequence[Run],
    coders: Sequence[FinishedCoder],
    labels: Sequence[str],
    log: list[dict[str, Any]],
    merged: Run,
) -> Results:
    for coder in coders:
        shutil.copytree(
            coder.folder, merged.coder_folder(coder.name), copy_function=_link, ignore=shutil.ignore_patterns(".*")
        )
    suite = runs[0].suite.replace(share=None, coders=_tables(runs))
    write_sealed_toml(merged.suite_file, suite.model_dump(mode="json"))
    JsonLines(merged.train_log).append(log)
    found: dict[str, Results] = {}
    for label in labels:
        evaluations = {coder.name: merged.coder(coder.name).evaluation(label) for coder in coders}
        found[label] = {name: one.content for name, one in sorted(evaluations.items()) if one is not None}
        numbers = {name: _with_nan(content) for name, content in found[label].items()}
        write_table(merged, numbers, suffix_of(label))
    merged.write_status("done", steps=max(run.status().get("steps", 0) for run in runs))
    return found[HELD_OUT]


def _with_nan(content: dict[str, Any]) -> dict[str, Any]:
    """eval.json as it was before it was written: an undefined number is null there, and NaN in results.parquet."""
    return {name: math.nan if value is None else value for name, value in content.items()}


def _link(source: str, target: str) -> None:
    """A hard link, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        flush_to_disk(Path(target))
