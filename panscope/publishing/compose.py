"""A run as a hub repository: a folder a coder that SAELens loads by its name as it is, and a model card over all.

```
README.md                       the card (card.py)
figures/trade-off-fvu.svg       what the card shows
<coder>/cfg.json                SAELens' configuration: sites by both names, where the coder comes from
<coder>/sae_weights.safetensors on raw activations
<coder>/config.json             ours: how it was trained
<coder>/eval.json               ours: every number of one evaluation, with intervals and what it was measured on
```

A coder that SAELens has no place for (of several sites, say) has our own `weights.safetensors` in place of SAELens' two
files, and the card says so. The same run gives the same bytes, which is what makes sending it resumable.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panscope.formats import FORMATS
from panscope.publishing.card import README, Card, CardEntry, CardFigure, write_card
from panscope.publishing.provenance import load_for_export, prepended_tokens, redact_paths
from panscope.runs.finished_coder import FinishedCoder, StoredEvaluation
from panscope.runs.run import Run
from panscope.storage.atomic import checksum, write_text
from panscope.storage.locks import locked
from panscope.storage.sealed import read_json, write_sealed
from panscope.storage.tensors import write_tensors
from panscope.types import UserError

FIGURES = "figures"
_SAELENS = FORMATS["saelens"]
_EVAL, _CONFIG, _WEIGHTS, _CFG = "eval.json", "config.json", "weights.safetensors", "cfg.json"
_NOT_PUBLIC = ("seal", "files")
"""Fields of eval.json that are not published."""


@dataclass(frozen=True)
class Composed:
    """What a repository is to hold."""

    coders: tuple[str, ...]
    """The names of the coders in it."""
    left_out_of_saelens: dict[str, str]
    """The coders that SAELens has no place for, and why."""
    not_measured: tuple[str, ...]
    """The names of those that have no evaluation."""


def compose(
    run: Run, out: Path, *, repository: str, licence: str, label: str | None, figures: Mapping[str, CardFigure]
) -> Composed:
    """Fill the empty folder `out` with what is published of `run`; `figures` are SVG texts by file name.

    The numbers are those of the evaluation `label`, None for a run without any. Raises UserError where the run has no
    finished coder or is damaged.
    """
    with locked(run.path):
        coders, found = run.coders(), run.evaluation(label)
        entries = [_coder(coder, out / coder.name, label, found[coder.name]) for coder in coders]
        suite = run.tables
    for name, figure in figures.items():
        write_text(out / FIGURES / name, figure.svg)
    shown = {f"{FIGURES}/{name}": figure for name, figure in figures.items()}
    model = coders[0].config.get("model") or {}
    card = Card(
        run=run.path.resolve().name,
        repository=repository,
        licence=licence,
        suite=redact_paths(suite),
        entries=tuple(entries),
        figures=shown,
        prepended_tokens=prepended_tokens(model, suite.get("data", {})) if not run.is_imported else None,
        ended=_ended(run),
        is_folder=redact_paths(model.get("path")) != model.get("path"),
    )
    write_text(out / README, write_card(card))
    return Composed(
        coders=tuple(coder.name for coder in coders),
        left_out_of_saelens={entry.name: entry.refused for entry in entries if entry.refused},
        not_measured=tuple(entry.name for entry in entries if entry.numbers is None),
    )


def _coder(coder: FinishedCoder, out: Path, label: str | None, found: StoredEvaluation | None) -> CardEntry:
    """One coder's folder, and what the card says of it."""
    foreign, refused = load_for_export(coder, label), ""
    out.mkdir(parents=True)
    try:
        written = _SAELENS.write(foreign, out)
    except UserError as error:
        refused = str(error)
        shutil.rmtree(out)
        write_tensors(out / _WEIGHTS, foreign.wired.coder.tensors())
        written = [out / _WEIGHTS]
    config = redact_paths(coder.config)
    weights = [path for path in written if path.suffix == ".safetensors"]
    config |= {"xxh3": {path.name: checksum(path) for path in weights}}
    write_sealed(out / _CONFIG, config)
    cfg = {} if refused else read_json(out / _CFG)
    return CardEntry(coder.name, config, cfg, _numbers(found, out), refused)


def _ended(run: Run) -> str:
    """The day on which the run was done; empty where it does not say."""
    status = run.status()
    return str(status.get("since", ""))[:10] if status.get("stage") == "done" else ""


def _numbers(found: StoredEvaluation | None, out: Path) -> dict[str, Any] | None:
    """eval.json as it is published, or None where the coder was not measured."""
    if found is None:
        return None
    fields = {name: value for name, value in redact_paths(found.content).items() if name not in _NOT_PUBLIC}
    write_sealed(out / _EVAL, fields)
    return fields
