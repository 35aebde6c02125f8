"""Penalties that will leave no latent active, found before training.

`sparsity` is K for some architectures and the penalty's coefficient for others, so that 32 is easily written for an L0
of 32 where it is a coefficient 1,600 times the usual one.
"""

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


def warn_large_penalty(plan: Plan) -> list[str]:
    """A sentence for each penalty that is far above those of any recipe."""
    found = dict.fromkeys(_sentence(one.coder) for one in plan.coders if _is_far(one.coder))
    return list(found)


def _is_far(coder: CoderConfig) -> bool:
    if isinstance(coder, JumpReLUConfig) and coder.target_l0 is not None:
        return False
    return coder.architecture in LARGEST and coder.sparsity > _FAR * LARGEST[coder.architecture][0]


def _sentence(coder: CoderConfig) -> str:
    largest, source = LARGEST[coder.architecture]
    then = f"give one near these ({source})"
    if coder.architecture == "jumprelu":
        then = f"for an L0 of {coder.sparsity:g} write --target-l0 {coder.sparsity:g} (target_l0 in a suite), or {then}"
    return (
        f"sparsity is {coder.sparsity:g}, which is a penalty for {coder.architecture}, and the recipes have at most "
        f"{largest:g}: few latents if any will be active; {then}"
    )
