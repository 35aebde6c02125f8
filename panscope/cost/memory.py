"""Estimates the device memory of training a suite, whether it fits, and the placement of coders on devices.

Counted are the language model, the shuffle buffer, the permanent state of each coder (weights, Adam's moments, and
buffers of its kernels), and the temporary memory of one coder's step, since coders step one after another.

Each coder that fits on one device is placed whole (module-parallel: only the rows it reads are communicated). A larger
coder is sharded along its latents (tensor-parallel), as Gemma Scope did with all but its smallest (section 3.3.1).
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from panscope import coders
from panscope.coders.auxk import AUXK_CODES, AuxKConfig
from panscope.coders.base import CoderConfig
from panscope.cost.flops import rows_of_a_step
from panscope.cost.gpus import Gpu
from panscope.kernels.backend import Kernels
from panscope.lms.facts import ModelFacts
from panscope.planning.coder import PlannedCoder
from panscope.planning.plan import GIB, ITEMSIZE, USABLE, Plan
from panscope.types import UserError

STATE_BYTES = 16
"""Bytes per parameter in training: float32 weight, gradient and Adam's two moments."""
WORKING_TENSORS = 3
"""float32 matrices [B, F] that a dense step holds at the same time: pre-activations, codes, and one gradient."""


CONVERSION_CODES = 1 << 24
"""Pre-activations of which the threshold of a converted coder is found at a time."""
CONVERSION_BYTES = 5 * 4 * CONVERSION_CODES
"""Memory for them: the pre-activations, and what selects the largest."""


def parameters(coder: CoderConfig) -> int:
    """Number of trainable parameters, counted on the architecture built on the meta device."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in coders.build(coder).parameters())


def state_bytes(planned: PlannedCoder) -> int:
    """Bytes of weights, gradients, Adam's moments and, if the recipe averages the weights, their average."""
    each = STATE_BYTES + (4 if planned.training.average_decay is not None else 0)
    return each * parameters(planned.coder)


def working_bytes(planned: PlannedCoder, batch: int) -> int:
    """Temporary memory of one dense step of this coder in bytes; only one coder steps at a time on a device."""
    return WORKING_TENSORS * 4 * rows_of_a_step(planned, batch) * planned.coder.width


def lm_bytes(plan: Plan, facts: ModelFacts) -> int:
    """Bytes of the language model's weights in its dtype; every device holds all of them."""
    return facts.parameters * ITEMSIZE[plan.suite.model.dtype]


def buffer_bytes(plan: Plan, facts: ModelFacts) -> int:
    """Bytes of the shuffle buffer: its rows at all sites, in the language model's dtype; 0 for stored activations."""
    if plan.suite.activations.source != "live":
        return 0
    return plan.buffer_rows * ITEMSIZE[plan.suite.model.dtype] * sum(facts.width(site) for site in plan.sites())


@dataclass(frozen=True)
class Sharded:
    """A coder that is sharded along its latents."""

    coder: PlannedCoder
    """The coder."""
    over: int
    """Number of devices, a power of two."""


@dataclass(frozen=True)
class Placement:
    """An assignment of coders to devices."""

    gpus: int
    """The number of devices."""
    whole: int
    """Number of coders that are placed whole on one device."""
    sharded: tuple[Sharded, ...]
    """The coders that are divided among several devices."""
    heaviest: int
    """Bytes of coders on the fullest device."""
    available: int
    """Bytes available for coders on each device; negative if not even the language model fits."""

    @property
    def fits(self) -> bool:
        """Whether the coders fit into the memory of the devices."""
        return self.heaviest <= self.available and all(shard.over <= self.gpus for shard in self.sharded)


class Placer:
    """Places a plan's coders on any number of devices of one type."""

    def __init__(self, plan: Plan, facts: ModelFacts, gpu: Gpu) -> None:
        self._plan = plan
        self._fixed = round(USABLE * gpu.memory_bytes) - lm_bytes(plan, facts)
        self._buffer = buffer_bytes(plan, facts)
        self._states = [state_bytes(coder) for coder in plan.coders]
        self._working = min(plan.step_bytes, max(working_bytes(coder, plan.batch) for coder in plan.coders))

    def parts(self) -> int:
        """The parts in which the rows of a step are processed for the widest coder."""
        return max(parts_of_step(coder, self._plan, is_sparse=False) for coder in self._plan.coders)

    def available(self, gpus: int) -> int:
        """Bytes for coders on each of `gpus` devices, after the language model, a step and a share of the buffer."""
        return self._fixed - self._working - self._buffer // gpus

    def place(self, gpus: int) -> Placement:
        """Place the coders, largest first, each on the device with the least load."""
        available = self.available(gpus)
        degrees = [_degree(state, available) for state in self._states]
        pieces = [state / over for state, over in zip(self._states, degrees, strict=True) for _ in range(over)]
        sharded = [Sharded(coder, over) for coder, over in zip(self._plan.coders, degrees, strict=True) if over > 1]
        whole = len(self._states) - len(sharded)
        return Placement(gpus, whole, tuple(sharded), round(max(_device_loads(pieces, gpus))), available)

    def fewest(self) -> Placement | None:
        """The placement on the smallest sufficient number of devices; None if there is no memory for any coder."""
        if self._fixed <= self._working:
            return None
        gpus = -(-(sum(self._states) + self._buffer) // (self._fixed - self._working))
        while not (placement := self.place(gpus)).fits:
            gpus += 1
        return placement


def _degree(state: int, available: int) -> int:
    """The smallest power of two that splits `state` into pieces that fit; 1 if no memory is available."""
    over = 1
    while 0 < available < state / over:
        over *= 2
    return over


def _device_loads(pieces: Sequence[float], gpus: int) -> list[float]:
    """The load of each device if each piece, largest first, is placed on the least loaded device (Graham 1969)."""
    loads = [0.0] * gpus
    for piece in sorted(pieces, reverse=True):
        heapq.heapreplace(loads, loads[0] + piece)
    return loads


_SPARSE_BYTES = 14
"""Bytes per parameter with sparse kernels: float32 weight and two moments, and a bfloat16 copy of half the parameters
for the screen, rounded up; no gradient."""
_SPARSE_ROWS = 8
"""float32 matrices [B, D] that a sparse step holds at the same time: rows, reconstruction, its gradient and others."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of training on one device, in bytes."""

    fixed: int
    """Language model and buffer."""
    kept: tuple[int, ...]
    """Permanent state of each coder."""
    rows: int
    """Rows of one batch as all coders read them."""
    working: int
    """Temporary memory of the coder whose step, or conversion after training, needs most."""

    @property
    def total(self) -> int:
        """Peak memory."""
        return self.fixed + sum(self.kept) + self.rows + self.working


def estimate_memory(plan: Plan, facts: ModelFacts, kernels_of: Callable[[str], Kernels | None]) -> MemoryEstimate:
    """Memory for training this plan; `kernels_of` maps a coder's name to its kernels (None: the reference)."""
    sparse = [kernels_of(coder.name) is not None for coder in plan.coders]
    kept = tuple(_kept_bytes(coder, is_sparse) for coder, is_sparse in zip(plan.coders, sparse, strict=True))
    working = max(_part_bytes(c, plan, is_sparse) for c, is_sparse in zip(plan.coders, sparse, strict=True))
    if any(coder.convert_to for coder in plan.coders):
        working = max(working, CONVERSION_BYTES)
    return MemoryEstimate(lm_bytes(plan, facts) + buffer_bytes(plan, facts), kept, _rows_bytes(plan), working)


def parts_of_step(coder: PlannedCoder, plan: Plan, *, is_sparse: bool) -> int:
    """The number of parts in which the rows of a step are processed, so that a part takes `train.step_gib` at most."""
    return min(rows_of_a_step(coder, plan.batch), -(-_step_bytes(coder, plan.batch, is_sparse) // plan.step_bytes))


def check_memory(plan: Plan, needed: MemoryEstimate, memory: int) -> None:
    """Raise UserError, which says what would fit, if training needs more than the device's `memory` in bytes."""
    usable = round(USABLE * memory)
    if needed.total <= usable:
        return
    widest = max(range(len(plan.coders)), key=lambda number: needed.kept[number])
    coder = plan.coders[widest]
    raise UserError(
        f"training needs about {needed.total / GIB:.1f} GiB of memory ({needed.fixed / GIB:.1f} for language model and "
        f"buffer, {sum(needed.kept) / GIB:.1f} for {len(plan.coders)} coders, {needed.rows / GIB:.1f} for the rows of "
        f"a batch, {needed.working / GIB:.1f} for a step), but the device has {memory / GIB:.1f}, of which "
        f"{usable / GIB:.1f} are usable; the largest coder is {coder.name} of width {coder.coder.width}: "
        f"{_what_fits(plan, needed, usable - needed.fixed - needed.rows)}"
    )


def _what_fits(plan: Plan, needed: MemoryEstimate, left: int) -> str:
    """What would fit into `left` bytes for coders and steps, whose memory is proportional to the width."""
    share = left / (sum(needed.kept) + needed.working)
    if share <= 0:
        return "reduce activations.buffer_rows or train.batch, or use a smaller language model"
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
    """Temporary memory of one step, if all its rows are processed at the same time.

    A sparse coder without fixed K may need dense steps at the start of training. AuxK's product has the dead latents,
    of which there may be any number, for a bounded number of rows at a time.
    """
    dense, config = working_bytes(coder, batch), coder.coder
    if not is_sparse or not config.keeps_k_a_row:
        return dense
    rows = rows_of_a_step(coder, batch)
    sparse = min(dense, _SPARSE_ROWS * 4 * rows * max(config.d_in, config.d_out))
    if isinstance(config, AuxKConfig) and config.auxk_coefficient:
        sparse += WORKING_TENSORS * 4 * min(rows * config.width, max(config.width, AUXK_CODES))
    return sparse


def _part_bytes(coder: PlannedCoder, plan: Plan, is_sparse: bool) -> int:
    """Temporary memory of a step in parts; the gradients of sparse parts are added up in matrices."""
    parts = parts_of_step(coder, plan, is_sparse=is_sparse)
    sums = 4 * parameters(coder.coder) if is_sparse and parts > 1 else 0
    return -(-_step_bytes(coder, plan.batch, is_sparse) // parts) + sums


def _rows_bytes(plan: Plan) -> int:
    """Bytes of a batch's inputs and targets in float32, raw and normalised, for every wiring once."""
    wirings = {coder.wiring: coder for coder in plan.coders}
    widths = [coder.coder.d_in + coder.coder.d_out * wiring.kind.predicts_other for wiring, coder in wirings.items()]
    stacks = [wiring.stacks for wiring in wirings]
    return 2 * 4 * plan.batch * sum(width * stack for width, stack in zip(widths, stacks, strict=True))
