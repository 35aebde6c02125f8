"""Arbitrary values in configurations give a coder or a one-line error; and tensors of inconsistent shapes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from panscope.formats import FORMATS, ImportedCoder, ImportOptions
from panscope.types import UserError
from tests.support.made_coders import D_IN, D_OUT, PREDICTS, make

CONFIGS = {
    "saelens": ("cfg.json", "sae_weights.safetensors"),
    "gemma_scope_2": ("config.json", "params.safetensors"),
    "llama_scope": ("hyperparams.json", "checkpoints/final.safetensors"),
    "gemma_scope": ("panscope.json", "params.npz"),
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "topk", "layer_norm", "blocks.1.hook_mlp_out", "../..", "6.0.0", "\0", "model.layers.1"])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    wired = make("batchtopk", predicts=PREDICTS)
    for name in CONFIGS:
        FORMATS[name].write(ImportedCoder(wired, {"model": "google/gemma-3-1b-pt"}), root / name)
    FORMATS["saelens"].write(ImportedCoder(make("topk"), {"model": "gpt2"}), root / "saelens.topk")
    return root


def keys(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every entry in a configuration."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place] * bool(place) + [found for key, item in inner for found in keys(item, (*place, key))]


def with_value(config: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    inside = config.copy()
    inside[place[0]] = with_value(config[place[0]], place[1:], value)
    return inside


@pytest.mark.parametrize("name", [*CONFIGS, "saelens.topk"])
@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_any_value_anywhere_is_read_or_is_a_sentence(name: str, data: st.DataObject, folders: Path) -> None:
    format = name.split(".")[0]
    path = folders / name / CONFIGS[format][0]
    good = path.read_text()
    config = json.loads(good)
    for place in data.draw(st.lists(st.sampled_from(keys(config)), min_size=1, max_size=2, unique_by=lambda p: p[0])):
        config = with_value(config, place, data.draw(VALUES))
    path.write_text(json.dumps(config))
    try:
        foreign = FORMATS[format].read(folders / name, ImportOptions())
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert foreign.wired.coder.config.width == 40
        json.dumps(dict(foreign.about))
    finally:
        path.write_text(good)


@pytest.mark.parametrize("name", CONFIGS)
def test_tensors_that_do_not_fit_are_refused(name: str, folders: Path, tmp_path: Path) -> None:
    format, wired = FORMATS[name], make("batchtopk", predicts=PREDICTS, d_out=D_OUT if name != "llama_scope" else D_IN)
    format.write(ImportedCoder(wired), tmp_path)
    path = tmp_path / CONFIGS[name][1]
    is_npz = path.suffix == ".npz"
    good = {key: torch.from_numpy(value) for key, value in np.load(path).items()} if is_npz else load_file(path)
    for key, tensor in good.items():
        nan = tensor.clone().fill_(float("nan"))
        for changed, word in (
            (torch.cat([tensor, tensor], dim=-1), "has shape|tensors have"),
            (tensor[None], "has shape"),
            (tensor[:0], "has shape"),
            (nan, "NaN"),
            (None, "lacks"),
        ):
            bad = {other: value for other, value in good.items() if other != key}
            bad |= {} if changed is None else {key: changed.contiguous()}
            if is_npz:
                np.savez(path, **{other: value.numpy() for other, value in bad.items()})  # type: ignore[arg-type]
            else:
                save_file(bad, path)
            with pytest.raises(UserError, match=word):
                format.read(tmp_path, ImportOptions())
    if wired.coder.config.d_in != wired.coder.config.d_out:
        format.write(ImportedCoder(wired), tmp_path)
        with pytest.raises(UserError, match="so it is a transcoder"):
            format.read(tmp_path, ImportOptions(reads=PREDICTS, predicts=PREDICTS))
    extra = good | {"more": torch.zeros(3)}
    if is_npz:
        np.savez(path, **{other: value.numpy() for other, value in extra.items()})  # type: ignore[arg-type]
    else:
        save_file(extra, path)
    with pytest.raises(UserError, match="also contains more"):
        format.read(tmp_path, ImportOptions())
