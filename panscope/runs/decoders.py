"""The decoders of a run's finished coders: what they are without reading a weight, and their vectors when asked for.

Those of a large run do not fit into memory together, so only the few used last are kept.
"""

from collections import OrderedDict

import torch

from panscope import coders
from panscope.coders import files
from panscope.geometry.dictionary import Dictionary
from panscope.geometry.pairs import CoderInfo
from panscope.runs.finished_coder import FinishedCoder
from panscope.runs.run import Run
from panscope.site_kinds import KINDS
from panscope.types import UserError

_KEPT = 4
"""Decoders in memory at a time."""


def known_coders(run: Run, tag: str = "") -> list[CoderInfo]:
    """Every finished coder of a run, `tag` at the end of its name; raises UserError if there is none."""
    return [_known(coder, coder.name + tag) for coder in run.coders()]


def _known(finished: FinishedCoder, name: str) -> CoderInfo:
    fields, wiring = finished.config["coder"], finished.wiring
    coder = coders.config_type(fields.get("architecture")).read(fields, str(finished.folder / files.CONFIG))
    return CoderInfo(
        name=name,
        folder=finished.folder,
        place=f"{wiring.wiring} {' '.join(map(str, wiring.reads))} -> {' '.join(map(str, wiring.predicts))}",
        architecture=coder.architecture,
        sparsity=coder.sparsity,
        latents=coder.width,
        width=coder.d_out,
        xxh3=finished.weights.get(files.WEIGHTS, ""),
        pieces=tuple(map(str, wiring.predicts)) if wiring.kind.joins_columns else (str(wiring.predicts[0]),),
        in_residual=not any(KINDS[site.kind].heads_wide for site in wiring.predicts),
    )


def chosen(known: list[CoderInfo], names: tuple[str, ...]) -> list[CoderInfo]:
    """The coders of these names, all if none is named; raises UserError for a name that is not there."""
    there = {coder.name: coder for coder in known}
    for name in names:
        if name not in there:
            raise UserError(f"--coder {name!r} is not in this run: choose from {_listed(sorted(there))}")
    return [there[name] for name in dict.fromkeys(names)] or known


def _listed(names: list[str], most: int = 20) -> str:
    left = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + left


class Decoders:
    """The decoder vectors of coders, on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._kept: OrderedDict[str, Dictionary] = OrderedDict()

    def get(self, coder: CoderInfo) -> Dictionary:
        """Those of one coder; raises UserError if its weights are damaged."""
        if coder.name not in self._kept:
            while len(self._kept) >= _KEPT:
                self._kept.popitem(last=False)
            rows = files.load(coder.folder).coder.W_dec.detach().to(self.device, torch.float32)
            self._kept[coder.name] = Dictionary(coder.name, rows)
        self._kept.move_to_end(coder.name)
        return self._kept[coder.name]
