"""Which kernels each coder of a plan is trained with on this machine, and the one line that says so and why."""

from collections import Counter
from dataclasses import dataclass

import torch

from panscope.cost.flops import rows_of_a_step
from panscope.kernels.backend import Kernels
from panscope.kernels.choose import sparse_kernels
from panscope.planning.coder import PlannedCoder
from panscope.planning.plan import Plan
from panscope.types import UserError

PAYS_FROM = 2e9
"""Floating-point operations of a step's dense products below which `auto` stays with the reference: a sparse step has a
fixed cost of about a millisecond of Python. Chosen, not tuned."""


@dataclass(frozen=True)
class KernelChoice:
    """The kernels in force."""

    sparse: Kernels | None
    """None where all goes by the reference."""
    named: frozenset[str]
    """The coders that train with them."""
    line: str

    def of(self, name: str) -> Kernels | None:
        """The kernels of the coder of that name; None is the reference."""
        return self.sparse if name in self.named else None


def choose_kernels(plan: Plan, device: torch.device) -> KernelChoice:
    """What `train.kernels` means on `device`; raises UserError if it asks for what is not there."""
    wanted = plan.suite.train.kernels
    if wanted == "reference":
        return KernelChoice(None, frozenset(), "kernels: reference, as train.kernels says")
    found = sparse_kernels(device)
    if found.kernels is None:
        if wanted == "sparse":
            raise UserError(
                f"train.kernels is 'sparse', but on {device.type} {found.detail}: install it, or set train.kernels to "
                "'auto' or 'reference' (`panscope doctor` says what this machine has)"
            )
        return KernelChoice(None, frozenset(), f"kernels: reference; no sparse ones on {device.type}: {found.detail}")
    every = frozenset(coder.name for coder in plan.coders)
    named = every if wanted == "sparse" else frozenset(coder.name for coder in plan.coders if _pays(coder, plan.batch))
    return KernelChoice(found.kernels, named, f"kernels: {_shares(named, every)}; {found.detail}")


def ignored_precision(plan: Plan, choice: KernelChoice) -> list[str]:
    """A sentence for each precision that the recipes of sparse coders ask for and sparse kernels do not use."""
    asked = Counter(
        coder.training.precision
        for coder in plan.coders
        if coder.name in choice.named and coder.training.precision != "float32"
    )
    return [
        f"precision {precision} of {count:,} coder{'s' * (count > 1)} is not used: sparse kernels compute in float32, "
        "and take a lower precision only to find candidates (--kernels reference uses it)"
        for precision, count in asked.items()
    ]


def _pays(coder: PlannedCoder, batch: int) -> bool:
    config = coder.coder
    return 10 * rows_of_a_step(coder, batch) * config.d_in * config.width >= PAYS_FROM


def _shares(named: frozenset[str], every: frozenset[str]) -> str:
    if named == every:
        return "sparse"
    if not named:
        return "reference, since the coders are small"
    return f"sparse for {len(named)} coders, reference for the {len(every - named)} small ones"
