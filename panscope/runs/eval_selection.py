"""Which evaluation of a run others are given: that on its held-out text; else the only one there is, or the one named.

A run may be measured many times, each time under a label that names the files. Imported coders have no held-out text,
so what was measured of them always has a label of its own.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from panscope.runs.evaluation import HELD_OUT
from panscope.runs.run import RunFolder
from panscope.storage.sealed import read_sealed
from panscope.types import UserError


def label_to_publish(run: RunFolder, asked: str | None) -> str | None:
    """The label of the evaluation whose numbers are published; None for a run that was never measured.

    Raises UserError, with the labels that there are, where `asked` is none of them or it must be asked.
    """
    found = labels(run.coder(name) for name in run.coder_names())
    have = ", ".join(found) or "none yet"
    if asked is not None and asked not in found:
        raise UserError(f"eval is {asked!r}, but the run {str(run.path)!r} has no such evaluation: it has {have}")
    label = asked or usual_label(found)
    if found and label is None:
        raise UserError(
            f"the run {str(run.path)!r} has several evaluations and none on held-out text: say by --eval which numbers "
            f"are published, one of {have}"
        )
    return label


def labels(coders: Iterable[Path]) -> list[str]:
    """The labels of all evaluations in these folders of coders."""
    stems = {path.stem for folder in coders for path in folder.glob("eval*.json")}
    return sorted(stem.removeprefix("eval").removeprefix("-") or HELD_OUT for stem in stems)


def usual_label(found: list[str]) -> str | None:
    """The one that is meant where none is named, if that is clear."""
    if HELD_OUT in found:
        return HELD_OUT
    return found[0] if len(found) == 1 else None


def numbers(folder: Path, label: str | None) -> dict[str, Any] | None:
    """A coder's eval.json of this label; None where there is none."""
    file = folder / ("eval.json" if label == HELD_OUT else f"eval-{label}.json")
    return read_sealed(file) if label is not None and file.is_file() else None


def numbers_of_all(run: RunFolder, label: str | None) -> dict[str, dict[str, Any] | None]:
    """The same of every coder; raises UserError where they are not of one measurement and so cannot be compared."""
    found = {name: numbers(run.coder(name), label) for name in run.coder_names()}
    measured = {name: own for name, own in found.items() if own is not None}
    first = next(iter(measured), "")
    for name, own in measured.items():
        if own.get("evaluated_on") != measured[first].get("evaluated_on"):
            raise UserError(
                f"the evaluations {label!r} of {first!r} and {name!r} are not of one text, model and way of measuring, "
                f"so no table can hold both: measure all coders again by `panscope eval {run.path}` and the flags it "
                "was made with, or delete the older file"
            )
    return found
