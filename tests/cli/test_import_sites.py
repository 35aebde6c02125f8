"""`panscope import --site`: one site, or several for one coder of all of them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from panscope.coders import files as store
from panscope.runs.run import Run
from tests.support.tiny_lm import Command, Tiny


def test_several_sites_are_one_coder_of_all(panscope: Command, tiny: Tiny):
    """A Multi-Layer SAE whose configuration does not name its layers."""
    folder = Path("theirs")
    folder.mkdir()
    shapes = {"encoder.weight": (32, 16), "decoder.weight": (16, 32), "pre_encoder_bias": (16,)}
    save_file({name: torch.randn(shape) for name, shape in shapes.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"n_inputs": 16, "n_latents": 32, "k": 4, "standardize": False}))
    model = ("--model", tiny.model)
    call = panscope("import", folder, "--out", "back", *model, "--site", "L00.resid_post", "L01.resid_post")
    assert call.status == 0, call.err
    (name,) = Run.open("back").coder_names()
    wiring = store.load(Path("back/coders") / name).wiring
    assert (wiring.wiring, " ".join(map(str, wiring.reads))) == ("multilayer", "L00.resid_post L01.resid_post")
    call = panscope(
        "import", folder, "--out", "one", *model, "--site", "L00.resid_post", "--predicts", "L01.resid_post"
    )
    assert call.status == 0, call.err
    call = panscope("export", "back", "--format", "mlsae", "--out", "again")
    assert call.status == 0, call.err
    call = panscope("import", "again", "--out", "twice", *model)
    assert (call.status, Run.open("twice").coder_names()) == (0, [name]), call.err
