"""Convert a coder with top-k selection to JumpReLU, whose latents can be computed independently of each other.

A BatchTopK coder already has a threshold (`frozen`). A TopK coder gets one threshold for all latents (Llama Scope
section 2.4): midway between the (N K)-th and the next largest pre-activation over N rows of the training distribution,
so that on average K latents are active per row.

Shape letters: B rows of a batch, N rows in total, D input width, F latents, K active latents per row.
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
    """Computes over batches the threshold that on average K pre-activations per row exceed; stores N K numbers."""

    def __init__(self, k: int, rows: int) -> None:
        self.k = k
        self._rows, self._seen = rows, 0
        self._count = k * rows
        self._largest = torch.empty(0)

    @torch.no_grad()
    def update(self, pre: Tensor) -> None:
        """Add the pre-activations [B, F] of one batch."""
        self._seen += len(pre)
        largest = torch.cat([self._largest.to(pre), torch.relu(pre).flatten()])
        self._largest = largest.topk(min(self._count + 1, len(largest))).values

    def value(self) -> float:
        """The threshold, after all rows have been added; raises UserError if no positive threshold gives K."""
        assert self._seen == self._rows, f"expected {self._rows} rows, received {self._seen}"
        if not 0 < self._count < len(self._largest):
            raise UserError(f"sparsity (K) {self.k} is not below the width: no threshold keeps that many; lower K")
        if not self._largest[-2] > 0:
            raise UserError(
                f"sparsity (K) {self.k} is above the mean number of positive latents per row; "
                "lower K, train longer, or omit convert_to"
            )
        return float(self._largest[-2:].double().mean())


def to_jumprelu(coder: Coder, batches: Sequence[Tensor]) -> Coder:
    """A JumpReLU coder with K active latents on average over `batches` of rows [B, D]; raises as `with_threshold`."""
    _check_convertible(coder)
    found = MeanL0Threshold(int(coder.config.sparsity), sum(len(x) for x in batches))
    for x in batches:
        found.update(coder.preactivations(x))
    return with_threshold(coder, found.value())


@torch.no_grad()
def frozen(coder: BatchTopKCoder) -> Coder:
    """BatchTopK as a JumpReLU coder with its running threshold; `encode` gives exactly the same codes."""
    return _jumprelu(coder, coder.thresholds().clone())


def with_threshold(coder: Coder, threshold: float) -> Coder:
    """`coder` with JumpReLU at one threshold instead of TopK; raises UserError unless it is TopK ranked by value."""
    _check_convertible(coder)
    return _jumprelu(coder, torch.full((coder.config.width,), threshold))


def _jumprelu(coder: Coder, threshold: Tensor) -> Coder:
    """`coder` as JumpReLU with thresholds [F]; its configuration keeps K as `sparsity` and as `target_l0`."""
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
            "for selection = 'decoder_norm', convert to unit decoder norms first"
        )
