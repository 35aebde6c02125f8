"""What looks wrong in the results of a run, one sentence each: it is said after training and after an evaluation."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from panscope.runs.run import Run

Results = Mapping[str, Mapping[str, Any]]

_INACTIVE_L0 = 0.5
_MOST_DEAD, _MOST_DENSE = 0.1, 0.1
_DENSE = "dense latents, active on more than a tenth of all tokens"
_DEAD = "dead latents: a lower learning rate, AuxK or more tokens wake more of them"
_FEWEST_RECORDS = 20
"""Logged steps that are needed to tell whether a loss still falls."""
_STILL_FALLING = 0.05
"""Share of the loss that the last tenth of training gained over the tenth before."""
_UNLIKE_L0 = 1.5
"""Ratio from which on two L0 are not compared."""
_NAMED = 5


def warnings_of_results(run: Run, results: Results, log: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """A sentence for each thing that looks wrong in the eval.json of a run's coders, or in `log`, its train.jsonl."""
    found = (
        _inactive(results),
        _above(results, "dead_fraction", _MOST_DEAD, _DEAD),
        _above(results, "dense_fraction", _MOST_DENSE, _DENSE),
        _falling(log),
        _unlike(run, results),
    )
    return [line for line in found if line]


def _inactive(results: Results) -> str:
    names = sorted(name for name, fields in results.items() if fields["l0"] < _INACTIVE_L0)
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (
        f"an L0 of about 0, which reconstructs little but the mean: {', '.join(names[:_NAMED])}{more}; lower sparsity "
        "where it is a penalty coefficient, or give jumprelu a target_l0"
    )


def _above(results: Results, field: str, most: float, what: str) -> str:
    """The coders of which more than a share of the latents are so."""
    shares = {name: fields[field] for name, fields in results.items() if fields[field] > most}
    if not shares:
        return ""
    worst = max(shares, key=lambda name: shares[name])
    return f"{len(shares)} of {len(results)} coders have more than {most:.0%} {what} ({worst} has {shares[worst]:.0%})"


def _falling(records: Sequence[Mapping[str, Any]]) -> str:
    """The coders whose loss fell to the end: medians of the last tenth of the records and of the tenth before."""
    losses: dict[str, list[float]] = defaultdict(list)
    for record in records:
        losses[record["coder"]].append(record["loss"])
    gains = {}
    for name, own in losses.items():
        tenth = len(own) // 10
        if len(own) >= _FEWEST_RECORDS:
            before, after = statistics.median(own[-2 * tenth : -tenth]), statistics.median(own[-tenth:])
            gains[name] = 1 - after / before if before > 0 else 0.0
    falling = {name: gain for name, gain in gains.items() if gain > _STILL_FALLING}
    if not falling:
        return ""
    worst = max(falling, key=lambda name: falling[name])
    return (
        f"the loss of {len(falling)} of {len(losses)} coders was still falling at the end of training, that of {worst} "
        f"by {falling[worst]:.0%} over the last tenth: train on more tokens"
    )


def _unlike(run: Run, results: Results) -> str:
    """The place where two architectures have the most unlike L0, if they differ too much to be compared."""
    places: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, fields in results.items():
        coder = run.coder(name)
        trained = coder.config["training"]["coder"]
        sites = " + ".join(map(str, coder.wiring.predicts))
        places[sites, trained["width"]][trained["architecture"]].append(fields["l0"])
    ratio, line = _UNLIKE_L0, ""
    for (sites, width), of in places.items():
        for low, high in ((a, b) for a in of for b in of if max(of[a]) < min(of[b])):
            found = min(of[high]) / max(max(of[low]), 1e-9)
            if found > ratio and max(of[low]) >= _INACTIVE_L0:
                ratio = found
                line = (
                    f"the L0 of {low} and {high} differ, such as {max(of[low]):.3g} and {min(of[high]):.3g} at {sites} "
                    f"with {width:,} latents: compare their FVU and delta loss along a curve over L0, not by rows"
                )
    return line
