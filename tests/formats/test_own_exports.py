"""Exports can be imported again at the same sites without options, in every format and for every family.

A coder that a format cannot represent is rejected, never written as another one.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from panscope.coders.wiring import WiredCoder, Wiring
from panscope.formats import FORMATS, ImportedCoder, ImportOptions
from panscope.types import SITE_KINDS, Site, UserError
from tests.support.hostile import holds_tensors, read_tensors, write_tensors
from tests.support.made_coders import MakeCoder
from tests.support.making import STANDARDISE, assert_equal, through_a_run

MODELS = ("meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B", "google/gemma-3-4b-pt", "EleutherAI/pythia-70m", "a/b", None)
ARCHITECTURES = {
    "gemma_scope": "jumprelu",
    "gemma_scope_2": "jumprelu",
    "llama_scope": "relu",
    "sparsify": "topk",
    "dictionary_learning": "topk",
    "mlsae": "topk",
    "openai": "topk",
    "saelens": "topk",
}
PAIRS = (
    ("mlp_in", "mlp_out"),
    ("mlp_in_no_gain", "mlp_out"),
    ("attn_z", "attn_out"),
    ("resid_post", "mlp_out"),
    ("mlp_out", "attn_out"),
)
STREAM = (Site(0, "resid_post"), Site(1, "resid_post"))


def place_for(format: str, model: str | None, reads: str, predicts: str) -> bool:
    """Whether the format can represent a coder of these kinds of sites of one layer."""
    if format == "mlsae":
        return reads == predicts == "resid_post"
    if format in ("openai", "dictionary_learning"):
        return reads == predicts
    if format != "sparsify" or reads == predicts:
        return True
    inside = (("mlp_in", "mlp_out"), ("attn_z", "attn_out"))
    return (reads, predicts) in inside and model not in (None, "a/b", "google/gemma-3-4b-pt")


def wired_for(make_coder: MakeCoder, format: str, *sites: Site) -> WiredCoder:
    """An SAE, or a transcoder, of an architecture that the format has."""
    bias = {"pre_encoder_bias": True, "encoder_bias": False} if format == "mlsae" else {}
    wired = make_coder(ARCHITECTURES[format], site=sites[0], predicts=sites[1] if len(sites) > 1 else None, **bias)
    if bias:
        wired.coder.load_tensors(wired.coder.tensors() | {"b_enc": torch.zeros(wired.coder.config.width)})
    return WiredCoder(wired.wiring, wired.coder, STANDARDISE) if format == "openai" else wired


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("format", FORMATS)
def test_the_sites_come_back(format: str, model: str | None, make_coder: MakeCoder, tmp_path: Path) -> None:
    own = FORMATS[format]
    for number, (reads, predicts) in enumerate([*zip(SITE_KINDS, SITE_KINDS, strict=True), *PAIRS]):
        sites = [Site(3, kind) for kind in dict.fromkeys((reads, predicts))]
        foreign = ImportedCoder(wired_for(make_coder, format, *sites), {"model": model})
        folder = tmp_path / f"coder-{number}"
        if not place_for(format, model, reads, predicts):
            with pytest.raises(UserError):
                own.write(foreign, folder)
            assert not folder.exists()
            continue
        own.write(foreign, folder)
        again = own.read(folder, ImportOptions())
        assert again.wired.wiring == foreign.wired.wiring
        assert again.about["model"] == model
        if len(sites) == 1 and format != "mlsae":
            elsewhere = own.read(folder, ImportOptions(reads=Site(1, reads))).wired.wiring
            assert (elsewhere.wiring, elsewhere.reads) == ("sae", (Site(1, reads),))


@pytest.mark.parametrize("format", FORMATS)
def test_the_tensors_come_back_through_a_run(format: str, make_coder: MakeCoder, tmp_path: Path) -> None:
    foreign = ImportedCoder(wired_for(make_coder, format, Site(3, "resid_post")), {"model": "a/b"})
    files = FORMATS[format].write(foreign, tmp_path / "first")
    again = through_a_run(tmp_path / "first", format, tmp_path, ImportOptions())
    (file,) = filter(holds_tensors, files)
    found, wanted = read_tensors(again / file.relative_to(tmp_path / "first")), read_tensors(file)
    assert_equal(*({name: x for name, x in table.items() if isinstance(x, Tensor)} for table in (found, wanted)))


@pytest.mark.parametrize("wiring", ["multilayer", "crosscoder"])
@pytest.mark.parametrize("format", FORMATS)
def test_several_sites_are_kept_or_refused(format: str, wiring: str, make_coder: MakeCoder, tmp_path: Path) -> None:
    one = wired_for(make_coder, format, STREAM[0])
    several = Wiring.read({"wiring": wiring, "reads": STREAM, "predicts": STREAM}, "test")
    foreign = ImportedCoder(WiredCoder(several, one.coder, one.normaliser), {"model": "gpt2"})
    if wiring == "multilayer" and format in ("saelens", "mlsae"):
        FORMATS[format].write(foreign, tmp_path / "a")
        assert FORMATS[format].read(tmp_path / "a", ImportOptions()).wired.wiring == several
    else:
        with pytest.raises(UserError, match=wiring):
            FORMATS[format].write(foreign, tmp_path / "a")
        assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("format", ["gemma_scope", "gemma_scope_2", "llama_scope", "sparsify", "openai"])
def test_where_coders_read_one_site_several_cannot_be_said(format: str, make_coder: MakeCoder, tmp_path: Path) -> None:
    FORMATS[format].write(ImportedCoder(wired_for(make_coder, format, STREAM[0])), tmp_path / "a")
    with pytest.raises(UserError, match=r"cannot read several \(L00\.resid_post L01\.resid_post\): name one site"):
        FORMATS[format].read(tmp_path / "a", ImportOptions(reads=STREAM))


@pytest.mark.parametrize("format", ["gemma_scope", "gemma_scope_2", "sparsify", "openai", "saelens"])
def test_damaged_sites_are_a_sentence(format: str, make_coder: MakeCoder, tmp_path: Path) -> None:
    files = FORMATS[format].write(ImportedCoder(wired_for(make_coder, format, Site(3, "resid_post"))), tmp_path / "a")
    (file,) = (file for file in files if file.suffix == ".json")
    names = json.loads(file.read_text())
    for own in ({"wiring": "multilayer", "reads": 3}, {"wiring": "crosscoder"}, {"reads": [{"site": "L3"}]}, {}):
        table = names["metadata"] if format == "saelens" else names
        table["panscope"] = own
        file.write_text(json.dumps(names))
        with pytest.raises(UserError, match=r"a/\w+\.json") as refusal:
            FORMATS[format].read(tmp_path / "a", ImportOptions())
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("format", FORMATS)
def test_whole_numbers_are_no_weights(format: str, make_coder: MakeCoder, tmp_path: Path) -> None:
    foreign = ImportedCoder(wired_for(make_coder, format, Site(3, "resid_post")), {"model": "gpt2"})
    file = next(file for file in FORMATS[format].write(foreign, tmp_path / "a") if holds_tensors(file))
    table = read_tensors(file)
    name = next(name for name in table if name.lower() in ("w_enc", "encoder.weight"))
    write_tensors(file, table | {name: table[name].to(torch.int32)})
    with pytest.raises(UserError, match=rf"tensor '{name}' is of torch\.int32, expected floating point"):
        FORMATS[format].read(tmp_path / "a", ImportOptions())
