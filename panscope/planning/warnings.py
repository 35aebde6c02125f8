"""Penalties that will leave no latent active, found before training.

`sparsity` is K for some architectures and the penalty's coefficient for others, so that 32 is easily written for an L0
of 32 where it is a coefficient 1,600 times the usual one.
"""

from panscope.coders.base import CoderConfig
from panscope.planning.plan import Plan

_FAR = 3.0
"""So many times the largest is far above it."""


def warn_large_penalty(plan: Plan) -> list[str]:
    """A sentence for each penalty that is far above those of any recipe."""
    found = dict.fromkeys(_sentence(one.coder) for one in plan.coders if _is_far(one.coder))
    return list(found)


def _is_far(coder: CoderConfig) -> bool:
    kind, value = coder.sparsity_aim()
    largest = coder.largest_coefficient
    return kind == "lambda" and largest is not None and value > _FAR * largest[0]


def _sentence(coder: CoderConfig) -> str:
    assert coder.largest_coefficient is not None
    largest, source = coder.largest_coefficient
    then = f"give one near these ({source})"
    if "target_l0" in type(coder).model_fields:
        then = f"for an L0 of {coder.sparsity:g} write --target-l0 {coder.sparsity:g} (target_l0 in a suite), or {then}"
    return (
        f"sparsity is {coder.sparsity:g}, which is a penalty for {coder.architecture}, and the recipes have at most "
        f"{largest:g}: few latents if any will be active; {then}"
    )
