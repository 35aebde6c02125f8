"""Estimates the time of a step on an accelerator: FLOPs at a share of the peak, and the optimiser's memory traffic.

time = FLOPs / (peak x utilisation) + bytes that Adam moves / (bandwidth x BANDWIDTH_SHARE)

The two are added since they do not overlap: the update follows the products. For Gemma Scope's example (one batch of
4,096 for a 131K coder of 9B on 8 TPUv3, section 3.3.1) the estimate is 53 ms; they measured 45 ms.
"""

from dataclasses import dataclass

from panscope.cost.flops import active_latents, dense_flops, rows_of_a_step, sparse_flops
from panscope.cost.gpus import Gpu
from panscope.cost.memory import parameters
from panscope.planning.coder import PlannedCoder

UTILISATION = 0.5
"""Share of the peak that matrix products reach: Gemma Scope measured 50.8 % for a whole step."""
BANDWIDTH_SHARE = 0.85
"""Share of the memory bandwidth that a streaming kernel such as Adam's reaches."""
HALVES = ("bfloat16", "float16")
"""The 16-bit precisions, to which weights are cast for a step."""
_ADAM_BYTES = 36
"""Bytes moved per parameter and step: weight and two moments read and written (24), the gradient zeroed, written and
read (12)."""


@dataclass(frozen=True)
class Step:
    """Time of one step of one coder on one device, in seconds."""

    dense: float
    """Matrix products of dense kernels."""
    sparse: float
    """Matrix products of sparse kernels."""
    adam: float
    """Memory traffic of the optimiser."""


def adam_bytes(planned: PlannedCoder) -> int:
    """Bytes that one update moves: 36 per parameter, plus 2 for a cast to 16 bits, plus 8 for a weight average."""
    training = planned.training
    cast = 2 if training.precision in HALVES else 0
    average = 0 if training.average_decay is None else 8
    return (_ADAM_BYTES + cast + average) * parameters(planned.coder)


def step_seconds(planned: PlannedCoder, batch: int, gpu: Gpu, utilisation: float = UTILISATION) -> Step:
    """Time of one step with `batch` rows per site on one device."""
    rows, speed = rows_of_a_step(planned, batch), utilisation * gpu.flops(planned.training.precision)
    return Step(
        dense_flops(planned.coder, rows) / speed,
        sparse_flops(planned.coder, rows, active_latents(planned)) / speed,
        adam_bytes(planned) / (BANDWIDTH_SHARE * gpu.bandwidth_gb_s * 1e9),
    )


def transfer_seconds(planned: PlannedCoder, batch: int, gpu: Gpu, value_bytes: int = 4) -> float:
    """Time to transfer the rows of one step from the host to one device."""
    return input_bytes(planned, batch, value_bytes) / (gpu.host_gb_s * 1e9)


def input_bytes(planned: PlannedCoder, batch: int, value_bytes: int = 4) -> int:
    """Bytes of the rows of one step: the coder's inputs and, if they differ, its targets."""
    coder = planned.coder
    columns = coder.d_in + (coder.d_out if planned.wiring.kind.predicts_other else 0)
    return rows_of_a_step(planned, batch) * columns * value_bytes


@dataclass(frozen=True)
class Sharding:
    """Sharding over devices of a single coder that is trained from stored activations."""

    data: int
    """Degree of data sharding; latents are sharded over devices / data."""
    hidden: bool
    """Whether the transfer of the rows takes no longer than the step; otherwise the host link is the bottleneck."""
    memory_bound: bool
    """Whether each device has too few rows to be compute-bound: its arithmetic intensity, 2 B / (bytes per weight), is
    below its ratio of FLOP/s to memory bandwidth."""


def sharding(planned: PlannedCoder, batch: int, gpus: int, gpu: Gpu) -> Sharding:
    """Gemma Scope's rule (section 3.3.1): the smallest degree of data sharding that hides the transfer behind the step.

    Latents are sharded over the remaining factor, since that needs little communication, while data sharding exchanges
    all gradients. Every device of a latent group receives all float32 rows of its data shard.
    """
    step, transfer = step_seconds(planned, batch, gpu), transfer_seconds(planned, batch, gpu)
    for data in (degree for degree in range(1, gpus + 1) if gpus % degree == 0):
        seconds = step.dense / gpus + step.adam * data / gpus
        if transfer / data <= seconds:
            return Sharding(data, True, _memory_bound(planned, batch // data, gpu))
    return Sharding(gpus, False, _memory_bound(planned, batch // gpus, gpu))


def _memory_bound(planned: PlannedCoder, rows: int, gpu: Gpu) -> bool:
    precision = planned.training.precision
    of_weight = 2 if precision in HALVES else 4
    intensity = 2 * rows_of_a_step(planned, rows) / of_weight
    return intensity < gpu.flops(precision) / (gpu.bandwidth_gb_s * 1e9)
