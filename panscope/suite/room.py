"""Whether a suite fits into the memory of the device it will train on: asked before anything large is made.

Counted: the language model, the shuffle buffer, what each coder keeps (weights, Adam's moments, and what its kernels
add), and what one coder's step holds for its while, since coders step one after another.
"""

from collections.abc import Callable
from dataclasses import dataclass

from panscope.coders.topk import TopKConfig
from panscope.kernels.backend import Kernels
from panscope.lms.facts import ModelFacts
from panscope.suite.coder import PlannedCoder
from panscope.suite.flops import rows_of_a_step
from panscope.suite.memory import STATE_BYTES, USABLE, buffer_bytes, lm_bytes, parameters, working_bytes
from panscope.suite.plan import Plan
from panscope.types import UserError

_SPARSE_BYTES = 14
"""Of a parameter under sparse kernels: float32 weight and two moments, and half the parameters once more in bfloat16
for the screen, rounded up; no gradient."""
_SPARSE_ROWS = 8
"""Matrices [B, D] of float32 that a sparse step holds at once: rows, reconstruction, its gradient, and their like."""
GIB = 2**30


@dataclass(frozen=True)
class Need:
    """Bytes of training on one device."""

    fixed: int
    """Language model and buffer."""
    kept: tuple[int, ...]
    """Of each coder, all the time."""
    working: int
    """Of the step that holds most."""

    @property
    def total(self) -> int:
        """All of it at once."""
        return self.fixed + sum(self.kept) + self.working


def need(plan: Plan, facts: ModelFacts, kernels_of: Callable[[str], Kernels | None]) -> Need:
    """What training this plan holds; `kernels_of` says which kernels a coder of that name has (None: the reference)."""
    sparse = [kernels_of(coder.name) is not None for coder in plan.coders]
    kept = tuple(_kept(coder, is_sparse) for coder, is_sparse in zip(plan.coders, sparse, strict=True))
    working = max(_working(c, plan.batch, is_sparse) for c, is_sparse in zip(plan.coders, sparse, strict=True))
    return Need(lm_bytes(plan, facts) + buffer_bytes(plan, facts), kept, working)


def check_room(plan: Plan, needed: Need, memory: int) -> None:
    """Raise UserError, with what would fit, where training needs more than the device's `memory` in bytes."""
    room = round(USABLE * memory)
    if needed.total <= room:
        return
    widest = max(range(len(plan.coders)), key=lambda number: needed.kept[number])
    coder = plan.coders[widest]
    raise UserError(
        f"training needs about {needed.total / GIB:.1f} GiB of memory ({needed.fixed / GIB:.1f} for language model and "
        f"buffer, {sum(needed.kept) / GIB:.1f} for {len(plan.coders)} coders, {needed.working / GIB:.1f} for a step), "
        f"but the device has {memory / GIB:.1f}, of which {room / GIB:.1f} can be planned with; the largest coder is "
        f"{coder.name} of width {coder.coder.width}: {_fits(plan, needed, room - needed.fixed)}"
    )


def _fits(plan: Plan, needed: Need, left: int) -> str:
    """What would fit into `left` bytes for coders and steps, which both grow with the width."""
    share = left / (sum(needed.kept) + needed.working)
    if share <= 0:
        return "lower activations.buffer_rows or train.batch, or take a smaller language model"
    count, used = 0, 0
    for kept in sorted(needed.kept):
        if used + kept > left - needed.working:
            break
        count, used = count + 1, used + kept
    width = int(share * max(coder.coder.width for coder in plan.coders))
    smaller = f"widths up to {width} would fit"
    return f"{smaller}, or {count} of these coders at a time" if count else smaller


def _kept(coder: PlannedCoder, is_sparse: bool) -> int:
    average = 4 if coder.training.average_decay is not None else 0
    return (average + (_SPARSE_BYTES if is_sparse else STATE_BYTES)) * parameters(coder.coder)


def _working(coder: PlannedCoder, batch: int, is_sparse: bool) -> int:
    """A sparse coder whose number of active latents is not fixed may have to take dense steps at first."""
    dense = working_bytes(coder, batch)
    if not is_sparse or not isinstance(coder.coder, TopKConfig):
        return dense
    config = coder.coder
    return min(dense, _SPARSE_ROWS * 4 * rows_of_a_step(coder, batch) * max(config.d_in, config.d_out))
