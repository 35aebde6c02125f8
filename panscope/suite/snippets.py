"""How to load a published coder: in SAELens, in Panscope, and with PyTorch alone; a test runs each as it stands."""

from collections.abc import Mapping, Sequence
from typing import Any

_SAELENS = """\
With [SAELens](https://github.com/decoderesearch/SAELens), on rows of {hooks}{shape}:

```python
from sae_lens import SAE

sae = SAE.from_pretrained("{repository}", "{coder}")
```"""
_PANSCOPE = """\
With Panscope:

```python
from panscope.api import load

coder = load("{repository}:{coder}")
```"""
_TORCH = """\
With PyTorch alone:

```python
import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

w = load_file(hf_hub_download("{repository}", "{coder}/sae_weights.safetensors"))
x = torch.randn(8, {d_in})  # in place of rows of {sites}, [tokens, {d_in}]
{code}
y = codes @ w["W_dec"] + w["b_dec"]
```"""
_CODES = {
    "standard": "codes = torch.relu({x} @ w['W_enc'] + w['b_enc'])",
    "jumprelu": "pre = {x} @ w['W_enc'] + w['b_enc']\ncodes = torch.relu(pre) * (pre > w['threshold'])",
    "topk": (
        "largest = torch.relu({x} @ w['W_enc'] + w['b_enc']).topk({k})\n"
        "codes = torch.zeros(len(x), {d_sae}).scatter(1, largest.indices, largest.values)"
    ),
    "gated": ("pi = {x} @ w['W_enc']\ncodes = (pi + w['b_gate'] > 0) * torch.relu(pi * w['r_mag'].exp() + w['b_mag'])"),
}


def ways(repository: str, coders: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """How to load one of the coders, given as names with SAELens' cfg.json, or {} where it has none."""
    name, cfg = min(coders, key=lambda one: _strange(one[1]))
    if not cfg:
        return [_PANSCOPE.format(repository=repository, coder=name)]
    reads = [site["hook_name"] for site in cfg["metadata"]["panscope"]["reads"]]
    shape = " as TransformerLens gives them, [..., heads, width]" if cfg["reshape_activations"] == "hook_z" else ""
    found = {"repository": repository, "coder": name, "shape": shape, "d_in": cfg["d_in"]}
    found |= {"sites": " or ".join(reads), "hooks": " or ".join(f"`{hook}`" for hook in reads)}
    written = [_SAELENS.format(**found), _PANSCOPE.format(**found)]
    if _strange(cfg) < _OTHER:
        centred = "(x - w['b_dec'])" if cfg["apply_b_dec_to_input"] else "x"
        code = _CODES[cfg["architecture"]].format(x=centred, k=cfg.get("k"), d_sae=cfg["d_sae"])
        written.append(_TORCH.format(**found, code=code.replace("'", '"')))
    return written


_OTHER = 10
"""From here on, a coder takes more than a few lines to compute."""


def _strange(cfg: Mapping[str, Any]) -> int:
    """How far a coder is from the plainest, which makes the best example."""
    if not cfg:
        return 3 * _OTHER
    if cfg["architecture"] not in _CODES or cfg["normalize_activations"] != "none":
        return 2 * _OTHER
    if cfg.get("rescale_acts_by_decoder_norm"):
        return _OTHER
    return int(cfg["reshape_activations"] != "none")
