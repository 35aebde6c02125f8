"""Turn a coder that selects into a JumpReLU coder, whose latents can each be computed without the others.

A BatchTopK coder already carries the threshold (`frozen`). A TopK coder gets one for all its latents (Llama Scope
section 2.4): midway between the (N K)-th and the next largest pre-activation over N rows of the training distribution,
so that on average K latents are active on a row.

Shape letters: B rows of a batch, N rows in total, D input width, F latents, K active latents a row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from panscope import coders
from panscope.coders.base import Coder
from panscope.coders.batchtopk import BatchTopKCoder
from panscope.coders.jumprelu import JumpReLUConfig
from panscope.coders.topk import TopKConfig
from panscope.types import UserError


class MeanL0Threshold:
    """Finds, batch by batch, the threshold above which K pre-activations a row lie on average; holds N K numbers."""

    def __init__(self, k: int, rows: int) -> None:
        self.k = k
        self._rows, self._seen = rows, 0
        self._wanted = k * rows
        self._largest = torch.empty(0)

    @torch.no_grad()
    def update(self, pre: Tensor) -> None:
        """Add the pre-activations [B, F] of one batch."""
        self._seen += len(pre)
        largest = torch.cat([self._largest.to(pre), torch.relu(pre).flatten()])
        self._largest = largest.topk(min(self._wanted + 1, len(largest))).values

    def value(self) -> float:
        """The threshold, once all rows are in; raises UserError where no positive one gives K."""
        assert self._seen == self._rows, f"{self._rows} rows were announced, {self._seen} came"
        if not 0 < self._wanted < len(self._largest):
            raise UserError(f"sparsity (K) {self.k} is not below the width: no threshold keeps that many; lower K")
        if not self._largest[-2] > 0:
            raise UserError(
                f"sparsity (K) {self.k} is above what fires: fewer latents a row are positive; "
                "lower K, train longer, or leave out convert_to"
            )
        return float(self._largest[-2:].double().mean())


def to_jumprelu(coder: Coder, batches: Sequence[Tensor]) -> Coder:
    """A JumpReLU coder with K active latents on average over `batches` of rows [B, D]; see `with_threshold`."""
    _check_convertible(coder)
    found = MeanL0Threshold(int(coder.config.sparsity), sum(len(x) for x in batches))
    for x in batches:
        found.update(coder.preactivations(x))
    return with_threshold(coder, found.value())


@torch.no_grad()
def frozen(coder: BatchTopKCoder) -> Coder:
    """The JumpReLU coder that BatchTopK's running threshold makes of it: the very codes that `encode` gives."""
    return _jumprelu(coder, coder.thresholds().clone())


def with_threshold(coder: Coder, threshold: float) -> Coder:
    """`coder` with JumpReLU at one threshold in place of TopK; raises UserError unless it is TopK ranked by value."""
    _check_convertible(coder)
    return _jumprelu(coder, torch.full((coder.config.width,), threshold))


def _jumprelu(coder: Coder, threshold: Tensor) -> Coder:
    """`coder` with thresholds [F]; its configuration keeps K as `sparsity`, and says it as `target_l0` too."""
    smallest = torch.finfo(threshold.dtype).tiny
    shared = {name: getattr(coder.config, name) for name in coders.CoderConfig.model_fields if name != "architecture"}
    k = coder.config.sparsity
    fields = {
        "threshold_init": max(smallest, float(threshold.median())),
        "target_l0": k if k < shared["width"] else None,
    }
    jump = coders.build(JumpReLUConfig.read(shared | fields, "to_jumprelu"))
    tensors = coder.tensors() | {"threshold": threshold.clamp_min(smallest).to(coder.W_enc)}
    return jump.to(coder.W_enc.device).load_tensors(tensors)


def _check_convertible(coder: Coder) -> None:
    config = coder.config
    if not isinstance(config, TopKConfig) or config.selection != "value":
        raise UserError(
            f"architecture {config.architecture!r} cannot become JumpReLU: it must be TopK that ranks by value; "
            "for selection = 'decoder_norm', bring the decoder to unit norm first"
        )
