"""How long the work takes on a named accelerator: FLOPs at a share of the peak, and the optimiser's memory traffic.

time = FLOPs / (peak x utilisation) + bytes that Adam moves / (bandwidth x BANDWIDTH_SHARE)

The two are added since in training neither hides the other: the update follows the products. With it, Gemma Scope's
example (one batch of 4,096 for a 131K coder of 9B on 8 TPUv3, section 3.3.1) comes out at 53 ms; they measured 45.
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
"""The precisions that weights are cast to for a step."""
_ADAM_BYTES = 36
"""Each step moves of each parameter: weight and two moments read and written (24), the gradient zeroed, written and
read (12)."""


@dataclass(frozen=True)
class Step:
    """Seconds of one step of one coder on one device."""

    dense: float
    sparse: float
    adam: float


def adam_bytes(planned: PlannedCoder) -> int:
    """Bytes that one update moves: 36 a parameter, 2 more to cast it to 16 bits, 8 more for an average of it."""
    training = planned.training
    cast = 2 if training.precision in HALVES else 0
    average = 0 if training.average_decay is None else 8
    return (_ADAM_BYTES + cast + average) * parameters(planned.coder)


def step_seconds(planned: PlannedCoder, batch: int, gpu: Gpu, utilisation: float = UTILISATION) -> Step:
    """One step of `batch` rows a site on one device."""
    rows, speed = rows_of_a_step(planned, batch), utilisation * gpu.flops(planned.training.precision)
    return Step(
        dense_flops(planned.coder, rows) / speed,
        sparse_flops(planned.coder, rows, active_latents(planned)) / speed,
        adam_bytes(planned) / (BANDWIDTH_SHARE * gpu.bandwidth_gb_s * 1e9),
    )


def transfer_seconds(planned: PlannedCoder, batch: int, gpu: Gpu, value_bytes: int = 4) -> float:
    """From the host to one device: every row of one step, at the rate of the link."""
    return input_bytes(planned, batch, value_bytes) / (gpu.host_gb_s * 1e9)


def input_bytes(planned: PlannedCoder, batch: int, value_bytes: int = 4) -> int:
    """The rows of one step: what the coder reads and, where it differs, what it predicts."""
    coder = planned.coder
    columns = coder.d_in + (coder.d_out if planned.wiring.kind.predicts_other else 0)
    return rows_of_a_step(planned, batch) * columns * value_bytes


@dataclass(frozen=True)
class Sharding:
    """How one coder alone, fed from stored activations, is spread over devices."""

    data: int
    """Shares that the rows of a step are cut into; devices / data is how many shares the latents are cut into."""
    hidden: bool
    """Whether the transfer of the rows takes no longer than the step; else the link is what limits."""
    memory_bound: bool
    """Whether each device's rows are too few to keep its units busy: 2 B / bytes FLOP for each byte of weights read
    stay below the ratio of its speed to its bandwidth."""


def sharding(planned: PlannedCoder, batch: int, gpus: int, gpu: Gpu) -> Sharding:
    """Gemma Scope's rule (section 3.3.1): the smallest degree of data sharding that hides the transfer behind the step.

    Latents are sharded over the rest, since that needs little exchange, while data sharding exchanges all gradients.
    Each device takes in its share of the rows, which every device of its latent group needs whole; as float32.
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
