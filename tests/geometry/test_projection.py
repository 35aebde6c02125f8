"""Projection to two dimensions: preserved neighbourhoods, reproducibility, and too few points."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import panscope
from panscope.geometry.projection import project
from panscope.types import UserError
from tests.support.planted_dictionaries import orthogonal


def clusters() -> torch.Tensor:
    """[36, 32]: three orthogonal directions, twelve vectors close around each."""
    axes = orthogonal(3, 32, 0).repeat_interleave(12, dim=0)
    noise = torch.randn(36, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (axes + 0.05 * noise).float()


def test_neighbours_stay_neighbours():
    """By cosine: norms mean nothing. Every point's eleven nearest in the picture are of its own cluster."""
    rows = clusters() * torch.logspace(-2, 2, 36)[:, None]
    places = project(rows, seed=0)
    assert (places.shape, places.dtype) == ((36, 2), torch.float32)
    distances = torch.cdist(places, places).fill_diagonal_(torch.inf)
    found = distances.topk(11, largest=False).indices // 12
    assert (found == torch.arange(36)[:, None] // 12).double().mean() > 0.95


def test_the_seed_decides():
    rows = clusters()
    first = project(rows, seed=3)
    assert torch.equal(project(rows, seed=3), first)
    assert not torch.equal(project(rows, seed=4), first)


@pytest.mark.parametrize("count", [5, 6, 14, 15, 16])
def test_small_neighbourhoods_work(count: int):
    places = project(clusters()[:count], seed=0).numpy()
    assert np.isfinite(places).all()
    assert len(np.unique(places, axis=0)) == count


def test_copies_can_be_laid_out():
    assert torch.isfinite(project(torch.ones(8, 4), seed=0)).all()


@pytest.mark.parametrize("count", [1, 4])
def test_too_few_points(count: int):
    with pytest.raises(UserError, match=f"a neighbourhood of {count} latents is too small .* at least 5 are needed"):
        project(clusters()[:count], seed=0)


def test_umap_is_loaded_by_one_file_and_by_no_import_of_panscope():
    """The import takes seconds, which would slow down every other command."""
    folder = Path(panscope.__file__).parent
    naming = [path.name for path in folder.rglob("*.py") if 'optional("umap"' in path.read_text(encoding="utf-8")]
    assert naming == ["umap_layout.py"]
    code = "import sys, panscope.cli.main, panscope.geometry.projection; assert 'umap' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
