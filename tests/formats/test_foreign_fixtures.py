"""Published coders of other tools, in ../shared: read correctly, or rejected if not representable.

Shape letters: B rows, D width, F latents.
"""

from pathlib import Path

import pytest
import torch

from panscope.formats import FORMATS
from panscope.types import UserError
from tests.support.making import AT_RESID, assert_equal, assert_near


@pytest.mark.parametrize(("name", "d", "f"), [("ae1.pt", 48, 192), ("ae2.pt", 120, 1920)])
def test_a_published_autoencoder_loads(shared: Path, name: str, d: int, f: int, tmp_path: Path) -> None:
    file = shared / "foreign_saes" / "dictionary_learning_autoencoder" / name
    finding = [format.name for format in FORMATS.values() if format.detect(file)]
    assert finding == ["dictionary_learning"]
    found = FORMATS["dictionary_learning"].read(file, AT_RESID)
    coder = found.wired.coder
    assert (coder.config.d_in, coder.config.width, coder.config.architecture) == (d, f, "relu")
    state = torch.load(file, map_location="cpu", weights_only=True)
    x = torch.randn(32, d, generator=torch.Generator().manual_seed(1))
    s = {key: tensor.double() for key, tensor in state.items()}
    codes = ((x.double() - s["bias"]) @ s["encoder.weight"].T + s["encoder.bias"]).clamp_min(0)
    with torch.no_grad():
        latents = found.wired.encode(x)
        assert_near(latents.dense(), codes)
        assert_near(found.wired.decode(latents, x), codes @ s["decoder.weight"].T + s["bias"])
    assert 0 < latents.l0().double().mean() < f
    FORMATS["dictionary_learning"].write(found, tmp_path / "again")
    assert_equal(torch.load(tmp_path / "again" / "ae.pt"), dict(state))


@pytest.mark.parametrize("name", ["sae_128_4.pt", "sae_512_4.pt", "sae_1024_4.pt"])
@pytest.mark.parametrize("format", ["openai", "dictionary_learning"])
def test_a_signed_topk_is_refused_and_never_made_another_coder(shared: Path, name: str, format: str) -> None:
    file = shared / "foreign_saes" / "topk_signed_tinystories1M" / name
    with pytest.raises(UserError, match=r"keeps the signs of its codes: .* not imported") as refusal:
        FORMATS[format].read(file, AT_RESID)
    assert "\n" not in str(refusal.value)


def test_no_other_format_reads_the_signed_topk(shared: Path) -> None:
    folder = shared / "foreign_saes" / "topk_signed_tinystories1M"
    for format in FORMATS.values():
        for path in (folder, folder / "sae_128_4.pt"):
            with pytest.raises(UserError):
                format.read(path, AT_RESID)
