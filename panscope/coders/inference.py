"""Two backends that compute the codes and reconstructions of a finished coder, and which one a coder uses.

`Reference` is the coder's own definition: every latent of every row. `Sparse` uses the kernels of training
(`kernels/backend.py`): a product screens, exact float32 decides, and only active latents are ever decoded. It gives the
same codes for the architectures whose code is a selection of pre-activations (topk, batchtopk, matryoshka, jumprelu).
With both, a row that is not finite has codes that are not finite.

Shape letters: B rows, D input width, E output width, F latents.
"""

import math
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from panscope.coders.base import Coder
from panscope.coders.batchtopk import BatchTopKCoder
from panscope.coders.jumprelu import JumpReLUCoder
from panscope.coders.topk import TopKCoder
from panscope.kernels.backend import Kernels, Screen
from panscope.kernels.choose import sparse_kernels
from panscope.types import Latents, UserError

KernelsName = Literal["auto", "sparse", "reference"]
WIDE = 4096
"""Latents from which on `auto` is sparse. Chosen, not tuned."""
_MOST = 1 / 8
"""Share of active codes above which the reference is used."""


class InferenceBackend(Protocol):
    """How codes are computed."""

    name: str
    """`sparse` or `reference`."""

    def encode(self, coder: Coder, x: Tensor) -> Latents:
        """The codes of rows x [B, D], which are normalised and in the coder's precision."""
        ...

    def decode(self, coder: Coder, latents: Latents) -> Tensor:
        """[B, E] the codes times the decoder, without biases."""
        ...


class Reference:
    """The definition: dense, and differentiable by rows and codes."""

    name = "reference"

    def encode(self, coder: Coder, x: Tensor) -> Latents:
        """See `InferenceBackend`."""
        return coder.encode(x)

    def decode(self, coder: Coder, latents: Latents) -> Tensor:
        """See `InferenceBackend`."""
        return latents.dense() @ coder.W_dec


class Sparse:
    """Active codes only; for one coder on one device, whose weights do not change.

    Rows that ask for gradients are encoded by the reference; decoding is differentiable by the codes.
    """

    name = "sparse"

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._screen: Screen | None = None
        self._norms: Tensor | None = None

    @torch.no_grad()
    def _selected(self, coder: Coder, x: Tensor) -> Latents | None:
        """None where too many codes are active, or where a row is not finite."""
        encoder = coder.encoder()
        W, b = encoder.W.detach(), encoder.b.detach()
        if self._screen is None:
            self._screen = self._kernels.screen(W)
        rows = self._kernels.rows(x, None if encoder.centre is None else encoder.centre.detach())
        if isinstance(coder, TopKCoder):
            values, indices = self._kernels.topk(
                rows, W, b, self._screen, int(coder.config.sparsity), self._ranks(coder)
            )
            not_finite = ~rows.size.isfinite()[:, None]  # by masking: the device is not asked, so nothing waits
            return Latents(values.relu_().masked_fill_(not_finite, math.nan), len(W), indices)
        assert isinstance(coder, JumpReLUCoder | BatchTopKCoder)
        floor = coder.threshold.detach() if isinstance(coder, JumpReLUCoder) else coder.thresholds().contiguous()
        found = self._kernels.above(rows, W, b, self._screen, floor, int(_MOST * len(x) * len(W)))
        if found is None or not rows.size.isfinite().all():
            return None
        return Latents(found.values, len(W), found.latents, found.starts)

    def _ranks(self, coder: TopKCoder) -> Tensor | None:
        if coder.config.by_norm and self._norms is None:
            self._norms = coder.W_dec.detach().norm(dim=1)
        return self._norms

    def encode(self, coder: Coder, x: Tensor) -> Latents:
        """See `InferenceBackend`."""
        if len(x) == 0 or (torch.is_grad_enabled() and x.requires_grad):
            return coder.encode(x)
        found = self._selected(coder, x.contiguous())
        return coder.encode(x) if found is None else found

    def decode(self, coder: Coder, latents: Latents) -> Tensor:
        """See `InferenceBackend`."""
        return gathered(latents, coder.W_dec.detach())


def gathered(latents: Latents, W_dec: Tensor) -> Tensor:
    """[B, E] the decoder vectors of the active places alone, each times its code; differentiable by the codes."""
    if latents.indices is None or len(latents.values) == 0:
        return latents.dense() @ W_dec
    starts = None if latents.starts is None else latents.starts[:-1]
    return torch.nn.functional.embedding_bag(
        latents.indices, W_dec, starts, mode="sum", per_sample_weights=latents.values
    )


def backend_for(coder: Coder, asked: KernelsName) -> InferenceBackend:
    """The backend that `asked` means for a coder on its device.

    Raises UserError for an unknown name, and for sparse kernels that the coder cannot use.
    """
    if asked not in get_args(KernelsName):
        raise UserError(f"kernels is {asked!r}: use one of {', '.join(get_args(KernelsName))}")
    if asked == "reference" or (asked == "auto" and coder.config.width < WIDE):
        return Reference()
    refusal = _refusal(coder)
    if refusal is None:
        found = sparse_kernels(coder.W_enc.device)
        if found.kernels is not None:
            return Sparse(found.kernels)
        refusal = f"on {coder.W_enc.device.type} {found.detail}"
    if asked == "sparse":
        raise UserError(f"kernels is 'sparse', but {refusal}: leave it at 'auto', or set it to 'reference'")
    return Reference()


def _refusal(coder: Coder) -> str | None:
    """Why a coder cannot use sparse kernels; None where it can."""
    if not isinstance(coder, TopKCoder | BatchTopKCoder | JumpReLUCoder):
        return f"architecture {coder.config.architecture!r} selects no latents"
    if coder.W_enc.dtype != torch.float32:
        return f"the coder is in {str(coder.W_enc.dtype).removeprefix('torch.')}, and they compute float32"
    return None
