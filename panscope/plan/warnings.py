"""Penalties that leave no latent active: said before training where the number tells, and after it where L0 does.

`sparsity` is K for some architectures and the penalty's coefficient for others, so that 32 is easily written for an L0
of 32 where it is a price 1,600 times the usual.
"""

from collections.abc import Mapping
from typing import Any

from panscope.coders.base import CoderConfig
from panscope.coders.jumprelu import JumpReLUConfig
from panscope.plan.plan import Plan

LARGEST = {
    "jumprelu": (0.02, "Gemma Scope: 1e-4 to 2e-3 in its suites here; gemma_scope_2: 0.02"),
    "gated": (0.08, "SAEBench: 0.012 to 0.08"),
    "relu": (10.0, "Anthropic, April 2024: 2 to 10"),
}
"""The largest coefficient of any recipe or suite of an architecture, and of which (docs/recipes.md)."""
_FAR = 3.0
"""So many times the largest is far above it."""
_ABOUT_NONE = 0.5
_NAMED = 5
_SUSPICIOUS = (
    ("dead_fraction", 0.1, "dead latents: a lower learning rate, AuxK or more tokens wake more of them"),
    ("dense_fraction", 0.1, "dense latents, active on more than a tenth of all tokens"),
)
"""Numbers of eval.json that are looked at after an evaluation, and above what they look wrong."""


def warn_large_penalty(plan: Plan) -> list[str]:
    """A sentence for each penalty that is far above those of any recipe."""
    found = dict.fromkeys(_sentence(one.coder) for one in plan.coders if _is_far(one.coder))
    return list(found)


def warn_inactive_coders(results: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A sentence for the coders that are active nowhere, of their eval.json; None where there are none."""
    names = sorted(name for name, fields in results.items() if fields["l0"] < _ABOUT_NONE)
    if not names:
        return None
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (
        f"an L0 of about 0, which reconstructs little but the mean: {', '.join(names[:_NAMED])}{more}; lower sparsity "
        "where it is a penalty, or give jumprelu a target_l0"
    )


def warn_of_results(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each thing that looks wrong in the eval.json of a run's coders."""
    found = []
    for field, most, what in _SUSPICIOUS:
        names = sorted((name for name in results if results[name][field] > most), key=lambda n: -results[n][field])
        if names:
            worst = f"{names[0]} has {results[names[0]][field]:.0%}"
            found.append(f"{len(names)} of {len(results)} coders have more than {most:.0%} {what} ({worst})")
    return found


def _is_far(coder: CoderConfig) -> bool:
    if isinstance(coder, JumpReLUConfig) and coder.target_l0 is not None:
        return False
    return coder.architecture in LARGEST and coder.sparsity > _FAR * LARGEST[coder.architecture][0]


def _sentence(coder: CoderConfig) -> str:
    largest, source = LARGEST[coder.architecture]
    way = f"give one near these ({source})"
    if coder.architecture == "jumprelu":
        way = f"for an L0 of {coder.sparsity:g} write --target-l0 {coder.sparsity:g} (target_l0 in a suite), or {way}"
    return (
        f"sparsity is {coder.sparsity:g}, which is a penalty for {coder.architecture}, and the recipes have at most "
        f"{largest:g}: few latents if any will be active; {way}"
    )
