"""What a planned suite costs, before anything is trained: every figure of `panscope plan` and what it assumes.

The parts are counted in `flops.py`, `memory.py`, `step_time.py` and `storage.py`; here they are put together for a
number of accelerators of one kind. Only configuration is read.
"""

from dataclasses import dataclass

from panscope.coders.auxk import AuxKConfig
from panscope.cost import storage as disk
from panscope.cost.flops import ASSUMED_L0, coder_flops, l0_is_assumed, lm_flops
from panscope.cost.gpus import Gpu
from panscope.cost.memory import (
    USABLE,
    WORKING_TENSORS,
    Placement,
    Placer,
    buffer_bytes,
    lm_bytes,
    parameters,
    state_bytes,
)
from panscope.cost.step_time import BANDWIDTH_SHARE, UTILISATION, Sharding, input_bytes, sharding, step_seconds
from panscope.cost.storage import Prices, StorageChoice
from panscope.lms.facts import ModelFacts
from panscope.planning.coder import PlannedCoder
from panscope.planning.plan import Plan
from panscope.types import Site


@dataclass(frozen=True)
class Compute:
    """FLOPs of the whole run, and the accelerator-hours they take."""

    lm_flops: float
    dense_flops: float
    sparse_flops: float
    lm_hours: float
    dense_hours: float
    sparse_hours: float
    adam_hours: float
    """The optimiser's memory traffic, the same dense or sparse."""
    bfloat16_hours: float
    """What the dense count of the coders would take in bfloat16, whatever their recipe says."""

    @property
    def hours(self) -> float:
        """Accelerator-hours as the reference kernels train."""
        return self.lm_hours + self.dense_hours + self.adam_hours

    @property
    def least_hours(self) -> float:
        """Accelerator-hours with kernels that touch only active latents."""
        return self.lm_hours + self.sparse_hours + self.adam_hours


@dataclass(frozen=True)
class Memory:
    """Bytes that training holds, and where."""

    parameters: int
    state: int
    """Of all coders: weights, gradients, Adam's moments, averages."""
    lm: int
    buffer: int
    here: Placement
    """On as many devices as were asked for."""
    fewest: Placement | None
    """On the fewest that suffice; None where no number does."""
    parts: int
    """In how many parts the widest coder takes the rows of a step."""


@dataclass(frozen=True)
class Disk:
    """Activations stored, in 32 bits and in bfloat16."""

    float32: dict[Site, int]
    bfloat16: dict[Site, int]
    everything: StorageChoice
    one_coder: PlannedCoder
    """A coder from the middle, as an example."""
    one: StorageChoice
    read_bytes_a_second: float
    """What that coder asks of the disk, in 32 bits, when it trains alone on all devices at the dense pace."""


@dataclass(frozen=True)
class Cost:
    """Everything that a plan costs on `gpus` devices of one kind."""

    plan: Plan
    facts: ModelFacts
    gpu: Gpu
    gpus: int
    prices: Prices
    compute: Compute
    memory: Memory
    disk: Disk


def cost(plan: Plan, facts: ModelFacts, gpu: Gpu, gpus: int = 1, prices: Prices | None = None) -> Cost:
    """Work out what `plan` costs on `gpus` devices like `gpu`; reads no weights."""
    prices = prices or Prices()
    return Cost(
        plan, facts, gpu, gpus, prices, _compute(plan, facts, gpu), _memory(plan, facts, gpu, gpus),
        _disk(plan, facts, gpu, gpus, prices),
    )  # fmt: skip


def _compute(plan: Plan, facts: ModelFacts, gpu: Gpu) -> Compute:
    """Language model in its dtype, coders in their precision, at UTILISATION; Adam at BANDWIDTH_SHARE."""
    counts = [coder_flops(coder, plan.batch) for coder in plan.coders]
    steps = [(coder.steps, step_seconds(coder, plan.batch, gpu)) for coder in plan.coders]
    of_lm = lm_flops(plan, facts) if plan.suite.activations.source == "live" else 0.0
    return Compute(
        lm_flops=of_lm,
        dense_flops=sum(dense for dense, _ in counts),
        sparse_flops=sum(sparse for _, sparse in counts),
        lm_hours=of_lm / (UTILISATION * gpu.flops(plan.suite.model.dtype)) / 3600,
        dense_hours=sum(n * step.dense for n, step in steps) / 3600,
        sparse_hours=sum(n * step.sparse for n, step in steps) / 3600,
        adam_hours=sum(n * step.adam for n, step in steps) / 3600,
        bfloat16_hours=sum(dense for dense, _ in counts) / (UTILISATION * gpu.flops("bfloat16")) / 3600,
    )


def _memory(plan: Plan, facts: ModelFacts, gpu: Gpu, gpus: int) -> Memory:
    placer = Placer(plan, facts, gpu)
    return Memory(
        parameters=sum(parameters(coder.coder) for coder in plan.coders),
        state=sum(state_bytes(coder) for coder in plan.coders),
        lm=lm_bytes(plan, facts),
        buffer=buffer_bytes(plan, facts),
        here=placer.place(gpus),
        fewest=placer.fewest(),
        parts=placer.parts(),
    )


def _disk(plan: Plan, facts: ModelFacts, gpu: Gpu, gpus: int, prices: Prices) -> Disk:
    one = disk.example(plan)
    step = step_seconds(one, plan.batch, gpu)
    return Disk(
        float32=disk.site_bytes(plan, facts, 4),
        bfloat16=disk.site_bytes(plan, facts, 2),
        everything=disk.store_everything(plan, facts, gpu, prices),
        one_coder=one,
        one=disk.store_one(plan, facts, one, gpu, prices=prices),
        read_bytes_a_second=input_bytes(one, plan.batch) * gpus / (step.dense + step.adam),
    )


def kinds(plan: Plan) -> list[list[PlannedCoder]]:
    """Coders of one size and one training configuration together: what is computed for one holds for all."""
    groups: dict[tuple[object, ...], list[PlannedCoder]] = {}
    for planned in plan.coders:
        coder, training = planned.coder, planned.training
        size = (coder.architecture, coder.d_in, coder.d_out, coder.width, planned.wiring.wiring, planned.wiring.stacks)
        groups.setdefault((*size, training.precision, training.average_decay), []).append(planned)
    return list(groups.values())


def shardings(whole: Cost) -> list[tuple[PlannedCoder, Sharding]]:
    """For one coder of each kind: how it would be spread over all devices if it trained alone from stored rows."""
    return [(group[0], sharding(group[0], whole.plan.batch, whole.gpus, whole.gpu)) for group in kinds(whole.plan)]


def assumptions(whole: Cost) -> list[str]:
    """What the figures take for granted, one sentence each; only what bears on this suite."""
    plan, prices = whole.plan, whole.prices
    said = [
        f"matrix products reach {UTILISATION:.0%} of the peak (Gemma Scope measured 50.8 % for a whole step), Adam's "
        f"traffic {BANDWIDTH_SHARE:.0%} of the memory bandwidth; the two are added, exchange between devices is not",
        f"float32 products run at {whole.gpu.float32:g} TFLOP/s (PyTorch leaves tf32 off), bfloat16 at "
        f"{whole.gpu.bfloat16:g}",
        f"every sequence is full: {plan.suite.data.context} tokens; measuring norms and evaluation are not counted",
        f"memory: {USABLE:.0%} of a device is used; each holds the whole language model, a dense step holds "
        f"{WORKING_TENSORS} matrices of rows x latents",
        "several devices, and steps whose rows are taken in parts, are arithmetic: `panscope train` uses one device "
        "and takes a step's rows at once today",
        f"prices: ${prices.gpu_hour:.2f} an accelerator-hour, ${prices.tib_month:.2f} a TiB and month (object store)",
    ]
    if any(l0_is_assumed(coder) for coder in plan.coders):
        said.append(f"L0 {ASSUMED_L0:g} where only a penalty is given (affects the sparse count only)")
    if any(isinstance(coder.coder, AuxKConfig) and coder.coder.auxk_coefficient for coder in plan.coders):
        said.append("AuxK: as if no latent were dead")
    if any(coder.coder.has_estimator_window for coder in plan.coders):
        said.append("sparse JumpReLU: without the latents inside the estimator's window, and L0 from the first step on")
    return said
