"""The cost estimate of a suite before training: every figure of `panscope plan`, and its assumptions.

The parts are computed in `flops.py`, `memory.py`, `step_time.py` and `storage.py`; this module combines them for a
number of accelerators of one type. Only configuration is read.
"""

from dataclasses import dataclass
from functools import cached_property

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
from panscope.cost.shares import fitting
from panscope.cost.step_time import BANDWIDTH_SHARE, UTILISATION, Sharding, input_bytes, sharding, step_seconds
from panscope.cost.storage import Prices, StorageChoice
from panscope.lms.facts import ModelFacts
from panscope.planning.coder import PlannedCoder
from panscope.planning.plan import Plan
from panscope.types import Site


@dataclass(frozen=True)
class Compute:
    """FLOPs and accelerator-hours of the whole run."""

    lm_flops: float
    """FLOPs of the language model's passes."""
    dense_flops: float
    """FLOPs of all steps with the reference kernels."""
    sparse_flops: float
    """FLOPs of all steps with sparse kernels."""
    lm_hours: float
    """Device-hours of the language model."""
    dense_hours: float
    """Device-hours of all steps with the reference kernels."""
    sparse_hours: float
    """Device-hours of all steps with sparse kernels."""
    adam_hours: float
    """Time of the optimiser's memory traffic, the same for dense and sparse kernels."""
    bfloat16_hours: float
    """Time of the coders' dense FLOPs in bfloat16, regardless of the precision of their recipes."""

    @property
    def hours(self) -> float:
        """Accelerator-hours with the reference kernels."""
        return self.lm_hours + self.dense_hours + self.adam_hours

    @property
    def least_hours(self) -> float:
        """Accelerator-hours with kernels that touch only active latents."""
        return self.lm_hours + self.sparse_hours + self.adam_hours


@dataclass(frozen=True)
class Memory:
    """Memory of training in bytes, and the placement of the coders."""

    parameters: int
    """Number of parameters of all coders."""
    state: int
    """Training state of all coders: weights, gradients, Adam's moments, averages."""
    lm: int
    """Weights of the language model."""
    buffer: int
    """The shuffle buffer."""
    here: Placement
    """Placement on the requested number of devices."""
    fewest: Placement | None
    """Placement on the smallest sufficient number of devices; None if no number is sufficient."""
    parts: int
    """Number of parts that the rows of a step have to be split into for the widest coder."""


@dataclass(frozen=True)
class Disk:
    """Size of stored activations, and the cost of storing them compared with generating them again."""

    float32: dict[Site, int]
    """Bytes of each site in float32."""
    bfloat16: dict[Site, int]
    """Bytes of each site in bfloat16."""
    everything: StorageChoice
    """Storing all sites of the suite."""
    one_coder: PlannedCoder
    """An example: a coder from the middle of the model."""
    one: StorageChoice
    """Storing the sites of `one_coder`."""
    read_bytes_a_second: float
    """Disk read rate, in float32, that `one_coder` needs if it trains alone on all devices with dense kernels."""


@dataclass(frozen=True)
class Cost:
    """The cost estimate of a plan on `gpus` devices of one type."""

    plan: Plan
    """What is trained."""
    facts: ModelFacts
    """What is known of the language model."""
    gpu: Gpu
    """The device."""
    gpus: int
    """How many of them."""
    prices: Prices
    """What device-hours and storage cost."""
    compute: Compute
    """Floating-point operations and device-hours."""
    memory: Memory
    """Bytes on the devices."""
    disk: Disk
    """Bytes of stored activations."""

    @cached_property
    def shares(self) -> list[Plan]:
        """The fewest shares, at least `gpus`, that each fit on one device; none if a coder is too large for one."""
        return fitting(self.plan, self.facts, self.gpu, self.gpus)

    @property
    def share_hours(self) -> float:
        """Accelerator-hours of the longest of `shares`, with the reference kernels and its own passes of the model."""
        return max((_compute(share, self.facts, self.gpu).hours for share in self.shares), default=0.0)


def cost(plan: Plan, facts: ModelFacts, gpu: Gpu, gpus: int = 1, prices: Prices | None = None) -> Cost:
    """Estimate the cost of `plan` on `gpus` devices of type `gpu`; reads no weights."""
    prices = prices or Prices()
    return Cost(
        plan, facts, gpu, gpus, prices, _compute(plan, facts, gpu), _memory(plan, facts, gpu, gpus),
        _disk(plan, facts, gpu, gpus, prices),
    )  # fmt: skip


def _compute(plan: Plan, facts: ModelFacts, gpu: Gpu) -> Compute:
    """Language model in its dtype and coders in their precision at UTILISATION; Adam at BANDWIDTH_SHARE."""
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
    """Group coders by size and training configuration: the estimate of one coder applies to its whole group."""
    groups: dict[tuple[object, ...], list[PlannedCoder]] = {}
    for planned in plan.coders:
        coder, training = planned.coder, planned.training
        size = (coder.architecture, coder.d_in, coder.d_out, coder.width, planned.wiring.wiring, planned.wiring.stacks)
        groups.setdefault((*size, training.precision, training.average_decay), []).append(planned)
    return list(groups.values())


def shardings(whole: Cost) -> list[tuple[PlannedCoder, Sharding]]:
    """For one coder of each of `kinds`: its sharding over all devices if it trained alone from stored activations."""
    return [(group[0], sharding(group[0], whole.plan.batch, whole.gpus, whole.gpu)) for group in kinds(whole.plan)]


def assumptions(whole: Cost) -> list[str]:
    """The assumptions of the estimate that are relevant for this suite, one sentence each."""
    plan, prices = whole.plan, whole.prices
    assumed = [
        f"matrix products reach {UTILISATION:.0%} of the peak (Gemma Scope measured 50.8 % for a whole step), Adam "
        f"{BANDWIDTH_SHARE:.0%} of the memory bandwidth; the two times are added, communication between devices is "
        "not included",
        f"float32 products run at {whole.gpu.float32:g} TFLOP/s (PyTorch disables tf32 by default), bfloat16 at "
        f"{whole.gpu.bfloat16:g}",
        f"every sequence is full: {plan.suite.data.context} tokens; measuring norms and evaluation are not included",
        f"memory: {USABLE:.0%} of a device is usable; each device holds the whole language model, a dense step "
        f"allocates {WORKING_TENSORS} matrices of rows x latents",
        "several devices are an estimate only: `panscope train` currently uses one device",
        f"prices: ${prices.gpu_hour:.2f} per accelerator-hour, ${prices.tib_month:.2f} per TiB-month (object store)",
    ]
    if any(l0_is_assumed(coder) for coder in plan.coders):
        assumed.append(f"L0 {ASSUMED_L0:g} where only a penalty coefficient is given (affects the sparse count only)")
    if any(isinstance(coder.coder, AuxKConfig) and coder.coder.auxk_coefficient for coder in plan.coders):
        assumed.append("AuxK: no latent is assumed dead")
    if any(coder.coder.has_estimator_window for coder in plan.coders):
        assumed.append(
            "sparse JumpReLU: latents within the estimator's window are not counted, and L0 is assumed to have its "
            "final value from the first step on"
        )
    return assumed
