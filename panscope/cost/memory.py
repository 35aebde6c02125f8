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
from panscope.coders.base import CoderConfig
from panscope.cost.flops import rows_of_a_step
from panscope.cost.gpus import Gpu
from panscope.kernels.backend import Kernels
from panscope.lms.facts import ModelFacts
from panscope.planning.coder import PlannedCoder
from panscope.planning.plan import Plan
from panscope.types import UserError

USABLE = 0.9
"""Usable share of a device's memory; the rest is for the CUDA context, the allocator and small tensors."""
STATE_BYTES = 16
"""Bytes per parameter in training: float32 weight, gradient and Adam's two moments."""
WORKING_TENSORS = 3
"""float32 matrices [B, F] that a dense step holds at the same time: pre-activations, codes, and one gradient."""
_VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


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
    return facts.parameters * _VALUE_BYTES[plan.suite.model.dtype]


def buffer_bytes(plan: Plan, facts: ModelFacts) -> int:
    """Bytes of the shuffle buffer: its rows at all sites, in the language model's dtype; 0 for stored activations."""
    if plan.suite.activations.source != "live":
        return 0
    return plan.buffer_rows * _VALUE_BYTES[plan.suite.model.dtype] * sum(facts.width(site) for site in plan.sites())


@dataclass(frozen=True)
class Sharded:
    """A coder that is sharded along its latents."""

    coder: PlannedCoder
    over: int
    """Number of devices, a power of two."""


@dataclass(frozen=True)
class Placement:
    """An assignment of coders to devices."""

    gpus: int
    whole: int
    """Number of coders that are placed whole on one device."""
    sharded: tuple[Sharded, ...]
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
        self._working = min(self._fixed // 4, max(working_bytes(coder, plan.batch) for coder in plan.coders))

    def parts(self) -> int:
        """Parts that a step's rows must be split into for the widest coder: a step may use a quarter of a device."""
        most = max(working_bytes(coder, self._plan.batch) for coder in self._plan.coders)
        return -(-most // self._working) if self._working > 0 else 1

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
GIB = 2**30


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of training on one device, in bytes."""

    fixed: int
    """Language model and buffer."""
    kept: tuple[int, ...]
    """Permanent state of each coder."""
    working: int
    """Temporary memory of the coder whose step needs most."""

    @property
    def total(self) -> int:
        """Peak memory."""
        return self.fixed + sum(self.kept) + self.working


def estimate_memory(plan: Plan, facts: ModelFacts, kernels_of: Callable[[str], Kernels | None]) -> MemoryEstimate:
    """Memory for training this plan; `kernels_of` maps a coder's name to its kernels (None: the reference)."""
    sparse = [kernels_of(coder.name) is not None for coder in plan.coders]
    kept = tuple(_kept_bytes(coder, is_sparse) for coder, is_sparse in zip(plan.coders, sparse, strict=True))
    working = max(_step_bytes(c, plan.batch, is_sparse) for c, is_sparse in zip(plan.coders, sparse, strict=True))
    return MemoryEstimate(lm_bytes(plan, facts) + buffer_bytes(plan, facts), kept, working)


def check_memory(plan: Plan, needed: MemoryEstimate, memory: int) -> None:
    """Raise UserError, which says what would fit, if training needs more than the device's `memory` in bytes."""
    usable = round(USABLE * memory)
    if needed.total <= usable:
        return
    widest = max(range(len(plan.coders)), key=lambda number: needed.kept[number])
    coder = plan.coders[widest]
    raise UserError(
        f"training needs about {needed.total / GIB:.1f} GiB of memory ({needed.fixed / GIB:.1f} for language model and "
        f"buffer, {sum(needed.kept) / GIB:.1f} for {len(plan.coders)} coders, {needed.working / GIB:.1f} for a step), "
        f"but the device has {memory / GIB:.1f}, of which {usable / GIB:.1f} are usable; the largest coder is "
        f"{coder.name} of width {coder.coder.width}: {_what_fits(plan, needed, usable - needed.fixed)}"
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
    """Temporary memory of one step; a sparse coder without fixed K may need dense steps at the start of training."""
    dense = working_bytes(coder, batch)
    if not is_sparse or not coder.coder.keeps_k_a_row:
        return dense
    config = coder.coder
    return min(dense, _SPARSE_ROWS * 4 * rows_of_a_step(coder, batch) * max(config.d_in, config.d_out))
