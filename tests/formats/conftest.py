"""Coders and rows for tests of foreign formats."""

import pytest
import torch
from torch import Tensor

from tests.support.made_coders import D_IN, ROWS, MakeCoder, make


@pytest.fixture
def rows() -> Tensor:
    """[B, D] random rows."""
    return torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="session")
def make_coder() -> MakeCoder:
    """Creates a coder of an architecture: an SAE at a site, or a transcoder if `predicts` is given."""
    return make
