"""How to get rows of a language model, and how to load a published coder: in SAELens, in Panscope, in PyTorch alone.

The snippets follow one another: `x` of the first is what the others read. Tests run each of them unchanged.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import panscope

_BUILT_IN = "panscope://demo"
_TEXT = '"Once upon a time"'
_TENSORS = {"input": "inputs[0]", "output": "output[0] if isinstance(output, tuple) else output"}
_SAELENS = """\
With [SAELens](https://github.com/decoderesearch/SAELens):

```python
from sae_lens import SAE

sae = SAE.from_pretrained("{repository}", "{coder}")
{heads}codes = sae.encode({x})
y = {y}
```"""
_APART = "x.unflatten(-1, (lm.config.get_text_config().num_attention_heads, -1))"
_HEADS = f"# at attn_z, SAELens wants the heads apart, [tokens, heads, d_head], which is\n# {_APART}\n"
_PANSCOPE = """\
With Panscope (the Python package `panscope`; its version {version} wrote this repository):

```python
from panscope.api import load

coder = load("{repository}:{coder}")
codes = coder.encode(x)
y = coder.decode(codes, x)
```"""
_TORCH = """\
With PyTorch alone:

```python
import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

w = load_file(hf_hub_download("{repository}", "{coder}/sae_weights.safetensors"))
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


def example(coders: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[str, Mapping[str, Any]]:
    """The plainest of coders given as names with SAELens' cfg.json, or {} where it has none."""
    return min(coders, key=lambda one: _strange(one[1]))


def rows(model: str, fields: Mapping[str, Any], cfg: Mapping[str, Any], prepended_tokens: Sequence[int] | None) -> str:
    """How to get rows `x` of what the coder reads with transformers; empty where no module of the model gives them.

    `model` is how the model is called, `fields` its table in config.json, `prepended_tokens` those that
    training put before a text.
    """
    module, _, end = _module(cfg).rpartition(".")
    if end not in _TENSORS:
        return ""
    called = "builtin.DEMO_MODEL" if model == _BUILT_IN else json.dumps(model)
    if fields.get("revision"):
        called += f", revision={json.dumps(fields['revision'])}"
    ids, kept = _tokens(prepended_tokens)
    lines = Path(__file__).with_name("rows.txt").read_text(encoding="utf-8").rstrip()
    return lines.format(
        imports="\nfrom panscope import builtin\n" if model == _BUILT_IN else "",
        model=called,
        dtype=fields.get("dtype") or "float32",
        ids=ids,
        tensor=_TENSORS[end],
        module=module,
        kept=kept,
        d_in=cfg["d_in"],
    )


def _tokens(prepended_tokens: Sequence[int] | None) -> tuple[str, str]:
    """The tokens of a text as in training, and which of their rows are for the coder."""
    plain = f"tokenizer({_TEXT}, add_special_tokens=False).input_ids"
    if prepended_tokens is None:
        kept = "[token not in tokenizer.all_special_ids for token in ids]"
        return f"tokenizer({_TEXT}).input_ids", kept
    if not prepended_tokens:
        return f"{plain}  # no BOS", ":"
    return f"[{prepended_tokens[0]}, *{plain}]  # {prepended_tokens[0]} is BOS; its row is left out", "1:"


def _module(cfg: Mapping[str, Any]) -> str:
    """Hugging Face's path of the first site that is read; empty where it is not known."""
    return cfg["metadata"]["panscope"]["reads"][0]["hf_hook_name"] or "" if cfg else ""


def snippets(repository: str, name: str, cfg: Mapping[str, Any], *, heads: bool) -> list[str]:
    """How to load a coder and compute its codes of `x`; `heads`: whether others of the repository are at attn_z."""
    ours = _PANSCOPE.format(repository=repository, coder=name, version=panscope.__version__)
    if not cfg:
        return [ours]
    at_heads = cfg["reshape_activations"] == "hook_z"
    decoded = "sae(x)" if "skip" in cfg["architecture"] else "sae.decode(codes)"
    theirs = _SAELENS.format(
        repository=repository,
        coder=name,
        heads=_HEADS if heads and not at_heads else "",
        x=_APART if at_heads else "x",
        y=decoded + (".flatten(-2)  # the heads apart before, together again" if at_heads else ""),
    )
    if _strange(cfg) >= _OTHER:
        return [theirs, ours]
    centred = "(x - w['b_dec'])" if cfg["apply_b_dec_to_input"] else "x"
    code = _CODES[cfg["architecture"]].format(x=centred, k=cfg.get("k"), d_sae=cfg["d_sae"])
    return [theirs, ours, _TORCH.format(repository=repository, coder=name, code=code.replace("'", '"'))]


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
    return int(cfg["reshape_activations"] != "none") + int(not _module(cfg).endswith(tuple(_TENSORS)))
