"""What training a suite holds in a device's memory, whether it fits, and where each coder goes.

Counted: the language model, the shuffle buffer, what each coder keeps (weights, Adam's moments, and what its kernels
add), and what one coder's step holds for its duration, since coders step one after another.

Coders are dealt out whole over the devices wherever each fits on one (module-parallel: nothing of theirs is exchanged
but the rows they read). A coder that exceeds a device is split along its latents (tensor-parallel), as Gemma Scope did
with all but its smallest (section 3.3.1).
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from panscope import coders
from panscope.coders.base import CoderConfig
from panscope.cost.flops import rows_of_a_step
from panscope.cost.gpus import Gpu
from panscope.kernels.backend import Kernels
from panscope.lms.facts import ModelFacts
from panscope.planning.coder import PlannedCoder
from panscope.planning.plan import Plan
from panscope.types import UserError

USABLE = 0.9
"""Share of a device's memory that is planned with; the rest is for the context, the allocator and small tensors."""
STATE_BYTES = 16
"""Of a parameter in training: float32 weight, gradient and Adam's two moments."""
WORKING_TENSORS = 3
"""Matrices [B, F] of float32 that a dense step holds at once: pre-activations, codes, and the gradient of one."""
_VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def parameters(coder: CoderConfig) -> int:
    """How many numbers the architecture learns, counted on it, without memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in coders.build(coder).parameters())


def state_bytes(planned: PlannedCoder) -> int:
    """Weights, gradients, Adam's moments and, where the recipe averages the weights, their average."""
    each = STATE_BYTES + (4 if planned.training.average_decay is not None else 0)
    return each * parameters(planned.coder)


def working_bytes(planned: PlannedCoder, batch: int) -> int:
    """What one dense step of this coder holds beside its state; only one coder steps at a time on a device."""
    return WORKING_TENSORS * 4 * rows_of_a_step(planned, batch) * planned.coder.width


def lm_bytes(plan: Plan, facts: ModelFacts) -> int:
    """The language model's weights in its dtype, whole on every device."""
    return facts.parameters * _VALUE_BYTES[plan.suite.model.dtype]


def buffer_bytes(plan: Plan, facts: ModelFacts) -> int:
    """The shuffle buffer: all its rows at every site, in the language model's dtype; rows of a store stay in files."""
    if plan.suite.activations.source != "live":
        return 0
    return plan.buffer_rows * _VALUE_BYTES[plan.suite.model.dtype] * sum(facts.width(site) for site in plan.sites())


@dataclass(frozen=True)
class Sharded:
    """A coder that is split along its latents."""

    coder: PlannedCoder
    over: int
    """Devices, a power of two."""


@dataclass(frozen=True)
class Placement:
    """Where the coders go on a number of devices."""

    gpus: int
    whole: int
    """Coders that lie on one device each."""
    sharded: tuple[Sharded, ...]
    heaviest: int
    """Bytes of coders on the fullest device."""
    room: int
    """Bytes for coders on each device; below 0 where even the language model does not fit."""

    @property
    def fits(self) -> bool:
        """Whether every device holds its share."""
        return self.heaviest <= self.room and all(shard.over <= self.gpus for shard in self.sharded)


class Placer:
    """Places one plan's coders on any number of one kind of device."""

    def __init__(self, plan: Plan, facts: ModelFacts, gpu: Gpu) -> None:
        self._plan = plan
        self._fixed = round(USABLE * gpu.memory_bytes) - lm_bytes(plan, facts)
        self._buffer = buffer_bytes(plan, facts)
        self._states = [state_bytes(coder) for coder in plan.coders]
        self._working = min(self._fixed // 4, max(working_bytes(coder, plan.batch) for coder in plan.coders))

    def parts(self) -> int:
        """In how many parts the widest coder must take a step's rows: their codes may fill a quarter of a device."""
        most = max(working_bytes(coder, self._plan.batch) for coder in self._plan.coders)
        return -(-most // self._working) if self._working > 0 else 1

    def room(self, gpus: int) -> int:
        """Bytes for coders on each of `gpus` devices, beside the language model, codes and a share of the buffer."""
        return self._fixed - self._working - self._buffer // gpus

    def place(self, gpus: int) -> Placement:
        """The coders dealt out, largest first, each to the emptiest device."""
        room = self.room(gpus)
        degrees = [_degree(state, room) for state in self._states]
        pieces = [state / over for state, over in zip(self._states, degrees, strict=True) for _ in range(over)]
        sharded = [Sharded(coder, over) for coder, over in zip(self._plan.coders, degrees, strict=True) if over > 1]
        whole = len(self._states) - len(sharded)
        return Placement(gpus, whole, tuple(sharded), round(max(_deal(pieces, gpus))), room)

    def fewest(self) -> Placement | None:
        """The placement on the fewest devices that suffice; None where not even the language model leaves room."""
        if self._fixed <= self._working:
            return None
        gpus = -(-(sum(self._states) + self._buffer) // (self._fixed - self._working))
        while not (placement := self.place(gpus)).fits:
            gpus += 1
        return placement


def _degree(state: int, room: int) -> int:
    """The least power of two that cuts `state` into pieces that fit; 1 where there is no room at all."""
    over = 1
    while 0 < room < state / over:
        over *= 2
    return over


def _deal(pieces: Sequence[float], gpus: int) -> list[float]:
    """The load of each device when each piece, largest first, goes to the least loaded (Graham 1969)."""
    loads = [0.0] * gpus
    for piece in sorted(pieces, reverse=True):
        heapq.heapreplace(loads, loads[0] + piece)
    return loads


_SPARSE_BYTES = 14
"""Of a parameter under sparse kernels: float32 weight and two moments, and half the parameters once more in bfloat16
for the screen, rounded up; no gradient."""
_SPARSE_ROWS = 8
"""Matrices [B, D] of float32 that a sparse step holds at once: rows, reconstruction, its gradient, and their like."""
GIB = 2**30


@dataclass(frozen=True)
class MemoryEstimate:
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


def estimate_memory(plan: Plan, facts: ModelFacts, kernels_of: Callable[[str], Kernels | None]) -> MemoryEstimate:
    """What training this plan holds; `kernels_of` says which kernels a coder of that name has (None: the reference)."""
    sparse = [kernels_of(coder.name) is not None for coder in plan.coders]
    kept = tuple(_kept_bytes(coder, is_sparse) for coder, is_sparse in zip(plan.coders, sparse, strict=True))
    working = max(_step_bytes(c, plan.batch, is_sparse) for c, is_sparse in zip(plan.coders, sparse, strict=True))
    return MemoryEstimate(lm_bytes(plan, facts) + buffer_bytes(plan, facts), kept, working)


def check_memory(plan: Plan, needed: MemoryEstimate, memory: int) -> None:
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


def _fits(plan: Plan, needed: MemoryEstimate, left: int) -> str:
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


def _kept_bytes(coder: PlannedCoder, is_sparse: bool) -> int:
    average = 4 if coder.training.average_decay is not None else 0
    return (average + (_SPARSE_BYTES if is_sparse else STATE_BYTES)) * parameters(coder.coder)


def _step_bytes(coder: PlannedCoder, batch: int, is_sparse: bool) -> int:
    """A sparse coder whose number of active latents is not fixed may have to take dense steps at first."""
    dense = working_bytes(coder, batch)
    if not is_sparse or not coder.coder.keeps_k_a_row:
        return dense
    config = coder.coder
    return min(dense, _SPARSE_ROWS * 4 * rows_of_a_step(coder, batch) * max(config.d_in, config.d_out))
