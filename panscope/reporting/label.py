"""Which evaluation a report draws: that on held-out text; else the only other one that there is, or the one named.

Imported coders have no held-out text, so what was measured of them always has a label of its own. Several runs are
drawn beside each other only where they have an evaluation of one label, and under any label but that of the held-out
text, which is each run's own, only where it is of one text.
"""

from dataclasses import replace
from pathlib import Path

from panscope.reporting.runs import ReportedRun, Results
from panscope.runs.finished_coder import HELD_OUT, StoredEvaluation
from panscope.types import UserError


def drawing(results: Results, asked: str | None = None) -> Results:
    """The same results with the evaluation to draw: `asked`, or the one that is meant where none is named.

    Raises UserError, with the labels that there are, where a run has none of that label, where it must be asked, and
    where the runs were measured on different texts.
    """
    chosen = replace(results, label=_usual(results) if asked is None else _checked(results, asked))
    if chosen.label != HELD_OUT:
        _check_one_text(chosen)
    return chosen


def texts(evaluation: StoredEvaluation) -> str:
    """What an evaluation was measured on, by the names of its files: they may have been given from any folder."""
    every = evaluation.about.get("text", ())
    return ", ".join(Path(text).name if Path(text).suffix else text for text in every) or "an unnamed text"


def _checked(results: Results, asked: str) -> str:
    for run in results.runs:
        if asked not in run.labels():
            have = ", ".join(run.labels()) or "none yet"
            raise UserError(f"eval is {asked!r}, but the run {run.name!r} has no such evaluation: it has {have}")
    return asked


def _usual(results: Results) -> str:
    """The label that is meant; runs that were never measured are drawn with what the others have."""
    measured = [run for run in results.runs if run.labels()]
    common = [label for label in results.labels() if all(label in run.labels() for run in measured)]
    if not measured or HELD_OUT in common:
        return HELD_OUT
    if len(common) == 1:
        return common[0]
    if common:
        raise UserError(
            f"{_runs(measured)} has several evaluations and none on held-out text: choose one with --eval: "
            f"{', '.join(common)}"
        )
    have = "; ".join(f"{run.name} has {', '.join(run.labels())}" for run in measured)
    raise UserError(
        f"these runs have no evaluation label in common ({have}): evaluate each on the same text with "
        "`panscope eval RUN --text FILE`"
    )


def _runs(runs: list[ReportedRun]) -> str:
    return f"the run {runs[0].name!r}" if len(runs) == 1 else "each of these runs"


def _check_one_text(results: Results) -> None:
    """Raise UserError where the evaluations that are drawn are not all of one text, measured in one way."""
    found: list[tuple[str, dict[str, object]]] = []
    for run in results.runs:
        drawn = [evaluation for coder in run.coders if (evaluation := results.drawn(coder))]
        found += [(run.name, _way(evaluation)) for evaluation in drawn]
    for name, way in found[1:]:
        first, other = found[0]
        differ = [key for key in way if way[key] != other[key]]
        if differ:
            one, two = (", ".join(f"{key} {told[key]}" for key in differ) for told in (other, way))
            raise UserError(
                f"the evaluation {results.label!r} is of {one} in the run {first!r} and of {two} in {name!r}, which "
                "cannot be compared: evaluate both on the same text in the same way with `panscope eval RUN --text "
                "FILE`, or choose another with --eval"
            )


def _way(evaluation: StoredEvaluation) -> dict[str, object]:
    """On what and how it was measured, but for the model, which runs may differ in."""
    about = evaluation.about
    how = {key: about.get(key) for key in ("packing", "context", "splice", "coder_dtype", "as_trained")}
    return {"text": texts(evaluation), "text_identity": about.get("text_identity"), **how}
