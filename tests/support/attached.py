"""Coders with random weights for every site of a model, and what an attached pass is compared with.

Shape letters: D width of a site, F latents, N sequences, T tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn

from panscope import coders
from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import UNIT, WiredCoder, Wiring
from panscope.lms.hf_versions import cache_argument
from panscope.lms.model import LanguageModel
from panscope.loading.loaded_coder import LoadedCoder
from panscope.types import SITE_KINDS, Site

F = 20
SPARSITY = {"relu": 0.3, "topk": 4, "batchtopk": 3, "matryoshka": 3, "jumprelu": 0.2, "gated": 0.25}
STANDARDISE = Normaliser(kind="standardise", scale_in=1, scale_out=1)


def made(
    lm: LanguageModel,
    reads: Site | tuple[Site, ...],
    predicts: Site | None = None,
    *,
    architecture: str = "topk",
    normaliser: Normaliser = UNIT,
    wiring: str = "sae",
    name: str | None = None,
    kernels: Any = "reference",
    **fields: Any,
) -> LoadedCoder:
    """A coder with random weights, as the model's own dtype, whose codes are active on random rows."""
    sites = (reads,) if isinstance(reads, Site) else reads
    targets = sites if predicts is None else (predicts,)
    wiring = "transcoder" if predicts is not None else wiring
    stacks = len(sites) if wiring == "crosscoder" else 1
    shape = {"d_in": lm.width(sites[0]) * stacks, "d_out": lm.width(targets[0]) * stacks, "width": F}
    free = {"decoder_norm": "free", "encoder_init": "own"}
    given = shape | {"sparsity": SPARSITY[architecture]} | free | fields
    coder = coders.build(coders.config_type(architecture).read(given, "test")).to(lm.dtype)
    generator = torch.Generator().manual_seed(hash_of(sites))
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        for positive in coder.positive:
            coder.get_parameter(positive).abs_().add_(0.05)
        if architecture in ("batchtopk", "matryoshka"):
            coder.get_buffer("threshold").fill_(0.4)
    own = Wiring.read({"wiring": wiring, "reads": sites, "predicts": targets}, "test")
    return LoadedCoder(name or f"{sites[0]}-{architecture}", WiredCoder(own, coder, normaliser), kernels=kernels)


def hash_of(sites: tuple[Site, ...]) -> int:
    return sum(100 * site.layer + SITE_KINDS.index(site.kind) for site in sites)


def everywhere(lm: LanguageModel, kinds: tuple[str, ...] = SITE_KINDS, **options: Any) -> list[LoadedCoder]:
    """A coder at every site of those kinds, two layers of the model, architectures in turn."""
    sites = [Site(layer, kind) for layer in (0, lm.n_layers - 1) for kind in kinds]
    names = list(SPARSITY)
    return [made(lm, site, architecture=names[n % len(names)], **options) for n, site in enumerate(sites)]


def forward(lm: LanguageModel, tokens: tuple[Tensor, Tensor], **options: Any) -> Tensor:
    """[N, T, V] the logits of a pass that the model's own code runs."""
    with torch.no_grad():
        return lm.model(input_ids=tokens[0], attention_mask=tokens[1], **options).logits


def with_cache(lm: LanguageModel, cache: Any) -> dict[str, Any]:
    """The keyword argument that gives a cache to the model, under the name that the installed transformers has."""
    return {cache_argument(lm.model): cache}


def hooks_on(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
