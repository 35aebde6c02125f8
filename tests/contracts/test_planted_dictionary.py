"""Every architecture finds the directions its rows were made of, in a few hundred plain Adam steps.

Rows are sums of 3 of 32 random directions of a 16-dimensional space, with coefficients between 0.5 and 1.5. The coder
has 48 latents and a unit decoder.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from panscope import coders
from panscope.coders.base import Coder

D, DIRECTIONS, ACTIVE, LATENTS = 16, 32, 3, 48
STEPS, ROWS, RATE = 800, 512, 0.01
SETTINGS: dict[str, dict[str, Any]] = {
    "relu": {"sparsity": 0.5},
    "topk": {"sparsity": ACTIVE},
    "jumprelu": {"sparsity": 0.2, "bandwidth": 0.5, "threshold_init": 0.1},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small lose more time to waiting threads than to sums, tenfold on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows_of(directions: Tensor, generator: torch.Generator) -> Tensor:
    """[ROWS, D]."""
    chosen = torch.rand(ROWS, DIRECTIONS, generator=generator).topk(ACTIVE, dim=1).indices
    size = torch.rand(ROWS, ACTIVE, generator=generator) + 0.5
    return torch.zeros(ROWS, DIRECTIONS).scatter(1, chosen, size) @ directions


def train(coder: Coder, directions: Tensor, generator: torch.Generator) -> None:
    """Adam, the penalty growing over the first 30 % and the rate falling over the last 30 %, decoder kept at norm 1."""
    optimiser = torch.optim.Adam(coder.parameters(), lr=RATE)
    part = 0.3 * STEPS
    for step in range(STEPS):
        warm = 1.0 if coder.config.architecture == "topk" else min(1.0, (step + 1) / part)
        optimiser.param_groups[0]["lr"] = RATE * min(1.0, (STEPS - step) / part)
        x = rows_of(directions, generator)
        optimiser.zero_grad()
        coder.objective(x, x, coder.config.sparsity * warm).loss.backward()
        coder.project_gradient()
        optimiser.step()
        coder.constrain()


def found_share(coder: Coder, directions: Tensor) -> float:
    """The share of directions that some latent's decoder vector meets with a cosine above 0.9."""
    cosines = directions @ nn.functional.normalize(coder.W_dec.detach(), dim=1).T
    return float((cosines.max(dim=1).values > 0.9).float().mean())


@pytest.mark.parametrize("architecture", coders.ARCHITECTURES)
def test_most_planted_directions_are_found(architecture: str) -> None:
    generator = torch.Generator().manual_seed(0)
    directions = nn.functional.normalize(torch.randn(DIRECTIONS, D, generator=generator), dim=1)
    fields = {"d_in": D, "d_out": D, "width": LATENTS} | SETTINGS[architecture]
    coder = coders.build(coders.config_type(architecture).read(fields, "test")).initialise(generator)
    assert found_share(coder, directions) < 0.2
    train(coder, directions, generator)
    # The least over seeds 0 to 5: ReLU 0.94, TopK 0.97, JumpReLU 0.88.
    assert found_share(coder, directions) >= 0.85
