"""Coders to export, and what two tools must agree on.

Shape letters: B rows, D width, F latents.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panscope import coders
from panscope.coders.base import Coder
from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import UNIT, WiredCoder, Wiring
from panscope.events import Reporter
from panscope.formats.base import ImportedCoder, ImportOptions
from panscope.publishing.export import export
from panscope.publishing.import_coders import import_coders
from panscope.runs.run import Run
from panscope.types import Site

B, D, F, K = 64, 12, 40, 5
RESID, MLP_IN, MLP_OUT = Site(3, "resid_post"), Site(3, "mlp_in"), Site(3, "mlp_out")
AT_RESID = ImportOptions(reads=RESID)
STANDARDISE = Normaliser(kind="standardise", scale_in=1, scale_out=1)


def random_coder(architecture: str, **fields: Any) -> Coder:
    """A coder with every parameter random, decoder norms from about 0.7 to 2, thresholds that cut some."""
    sparsity = K if architecture in ("topk", "batchtopk", "matryoshka") else 0.1
    base = {"architecture": architecture, "d_in": D, "d_out": D, "width": F, "sparsity": sparsity}
    config = coders.config_type(architecture).read(base | {"decoder_norm": "free"} | fields, "test")
    coder, generator = coders.build(config), torch.Generator().manual_seed(31)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator) * 0.4 for name, tensor in sorted(coder.tensors().items())
    }
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].abs() + 0.2
    if not config.encoder_bias:
        tensors["b_enc"].zero_()
    return coder.load_tensors(tensors)


def foreign(
    coder: Coder, reads: Site = RESID, predicts: Site | None = None, normaliser: Normaliser = UNIT, **about: Any
) -> ImportedCoder:
    """A coder at its sites, of a language model that has a family."""
    target = predicts or reads
    kind = "sae" if target == reads else "transcoder"
    wiring = Wiring.read({"wiring": kind, "reads": [reads], "predicts": [target]}, "test")
    return ImportedCoder(WiredCoder(wiring, coder, normaliser), {"model": "EleutherAI/pythia-70m", **about})


def rows(seed: int = 32, size: float = 1.0) -> Tensor:
    """[B, D], off centre."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(B, D, generator=generator) * 1.5 + 0.3) * size


def reconstruct(found: ImportedCoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [B, F] and reconstruction [B, D] by ours."""
    with torch.no_grad():
        codes = found.wired.encode(x)
        return codes.dense(), found.wired.decode(codes, x)


def assert_near(found: Tensor, wanted: Tensor, limit: float = 1e-5) -> None:
    """Largest difference, as a share of the largest number."""
    assert found.shape == wanted.shape
    error = (found.double() - wanted.double()).abs().max() / wanted.double().abs().max()
    assert error < limit, f"off by {error:.2g} of the largest number"


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """The same names, types and numbers, bit for bit."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def through_a_run(source: Path, format: str, out: Path, asked: ImportOptions) -> Path:
    """A coder of another tool imported into a run and exported from it in its own format: the folder."""
    import_coders([source], out / "run", asked, format=format, reporter=Reporter())
    (name,) = Run.open(out / "run").coder_names()
    return export(out / "run" / "coders" / name, format, out / "again")[0]


def save_rows(folder: Path) -> Path:
    """Rows as a file for the other interpreter."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(rows(), folder / "rows.pt")
    return folder / "rows.pt"
