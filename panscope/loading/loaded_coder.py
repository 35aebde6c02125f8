"""A trained coder for interactive use: encodes raw activations of any leading shape, and decodes codes.

Shape letters: ... any leading shape, B its rows in order, D input width, E output width, F latents.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from panscope.coders.base import CoderConfig
from panscope.coders.inference import KernelsName, backend_for, gathered
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.lms.load import named_device
from panscope.loading.codes import Codes
from panscope.types import Latents, UserError


class LoadedCoder:
    """A coder that works on raw activations: f = encode(x), y_hat = decode(f) (Cunningham et al. 2023; Bricken et al.
    2023; transcoders: Dunefsky et al. 2024).

    Created by `load`. Its weights are frozen; gradients flow to rows and codes. `kernels` selects the implementation:
    `sparse` computes active latents only (topk, batchtopk, matryoshka and jumprelu in float32), `reference` all of
    them; `auto` means `sparse` for coders of at least 4,096 latents if this machine supports it. Both give the same
    results except for the order of float32 sums, and both give codes with NaN for a row with NaN.
    """

    def __init__(
        self,
        name: str,
        wired: WiredCoder,
        about: Mapping[str, Any] | None = None,
        *,
        kernels: KernelsName = "auto",
        path: Path | None = None,
    ) -> None:
        self.name = name
        self.wired = wired
        self.about = dict(about or {})
        """The provenance stated in its files."""
        self.path = path
        """The folder or file that it was loaded from."""
        self._kernels: KernelsName = kernels
        wired.coder.eval().requires_grad_(False)
        wired.backend = backend_for(wired.coder, kernels)

    def __repr__(self) -> str:
        config, wiring = self.wired.coder.config, self.wiring
        sites = " -> ".join(dict.fromkeys(" + ".join(map(str, each)) for each in (wiring.reads, wiring.predicts)))
        return f"LoadedCoder({self.name!r}: {config.architecture}, {config.width:,} latents, {sites}, {self.kernels})"

    @property
    def wiring(self) -> Wiring:
        """The sites it reads and predicts."""
        return self.wired.wiring

    @property
    def width(self) -> int:
        """F."""
        return self.wired.coder.config.width

    @property
    def kernels(self) -> str:
        """The implementation in use: `sparse` or `reference`."""
        return self.wired.backend.name

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return self.wired.coder.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its computations, regardless of that of the rows, even under torch.autocast."""
        return self.wired.coder.W_enc.dtype

    @property
    def W_enc(self) -> Tensor:
        """[F, D] the encoder matrix for raw rows, or for normalised rows if the normaliser differs from row to row."""
        return self.wired.coder.W_enc.detach()

    @property
    def W_dec(self) -> Tensor:
        """[F, E] the decoder vector of each latent, in raw units per unit of its code (see `W_enc`)."""
        return self.wired.coder.W_dec.detach()

    @property
    def b_enc(self) -> Tensor:
        """[F] the bias of the encoder (see `W_enc`)."""
        return self.wired.coder.b_enc.detach()

    @property
    def threshold(self) -> Tensor | None:
        """[F] the pre-activation above which a latent is active (see `W_enc`); None for a coder without thresholds."""
        found = getattr(self.wired.coder, "threshold", None)
        return None if found is None else found.detach().expand(self.width)

    @property
    def config(self) -> CoderConfig:
        """Architecture, widths and hyper-parameters."""
        return self.wired.coder.config

    @property
    def b_dec(self) -> Tensor:
        """[E] the bias of the decoder (see `W_dec`)."""
        return self.wired.coder.b_dec.detach()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the coder in place to a device or dtype; returns itself.

        Raises UserError for an unavailable device, and if `kernels` was "sparse" but is not supported there.
        """
        self.wired.coder.to(device=None if device is None else named_device(device), dtype=dtype)
        self.wired.backend = backend_for(self.wired.coder, self._kernels)
        return self

    def encode(self, x: Tensor) -> Codes:
        """The codes of raw activations x [..., D] of any floating dtype, in the model's own units.

        Differentiable with respect to x if x requires gradients (by the reference implementation). Raises UserError for
        another width or type.
        """
        rows = self._rows(x)
        with self._own_precision():
            return Codes.shaped(self.wired.encode(rows), x.shape[:-1])

    def decode(self, codes: Latents | Tensor, x: Tensor | None = None) -> Tensor:
        """The reconstruction [..., E] from codes of any dtype, in the coder's precision; differentiable with respect to
        the codes, but only once (no second derivative) if `kernels` is "sparse".

        `codes` are those of `encode`, or a tensor [..., F] of all latents. `x` [..., D], the encoded rows, is required
        for a coder with an affine skip, or whose normaliser differs from row to row. Raises UserError if it is required
        but missing, for codes of another width, and for another number of rows.
        """
        if isinstance(codes, Tensor):
            if codes.dim() == 0:
                raise UserError(f"coder {self.name!r} decodes codes of {self.width} latents, but codes is a scalar")
            codes = Codes.dense_of(codes)
        leading = codes.leading if isinstance(codes, Codes) else (len(codes),)
        if codes.width != self.width:
            raise UserError(
                f"coder {self.name!r} has {self.width} latents, but the codes have {codes.width}: decode them with "
                "the coder that encoded them"
            )
        if x is None and self.needs_rows:
            raise UserError(f"coder {self.name!r} needs the rows to decode: call decode(codes, x)")
        with self._own_precision():
            rows = None if x is None else self._rows_of(codes, x)
            y_hat = self.wired.decode(codes.with_values(codes.values.to(self.dtype)), rows)
            return y_hat.view(*leading, y_hat.shape[1])

    def __call__(self, x: Tensor) -> Tensor:
        """The reconstruction [..., E] of raw activations x [..., D]: `decode(encode(x), x)`."""
        return self.decode(self.encode(x), x)

    @property
    def needs_rows(self) -> bool:
        """Whether decoding requires the rows."""
        return self.wired.needs_rows

    def change(self, latents: Tensor, by: Tensor, x: Tensor) -> Tensor:
        """[B, E] the change of the reconstruction of rows x [B, D] if latents [n] change `by` [B, n]."""
        with self._own_precision():
            codes = Codes.of_columns(by.to(self.dtype), latents, self.width)
            return self.wired.raw_difference(gathered(codes, self.wired.coder.W_dec.detach()), x)

    def part(self, codes: Latents, x: Tensor) -> Tensor:
        """[B, E] the contribution of codes to the reconstruction of rows x [B, D], relative to that of no codes."""
        with self._own_precision():
            return self.wired.raw_difference(self.wired.backend.decode(self.wired.coder, codes), x)

    def _own_precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, enabled=False)

    def _rows(self, x: Tensor) -> Tensor:
        wanted = self.wired.coder.config.d_in
        if not isinstance(x, Tensor):
            raise UserError(
                f"coder {self.name!r} reads tensors, but x is a {type(x).__name__}: convert it, for example with "
                "torch.from_numpy(x)"
            )
        if x.dim() == 0 or x.shape[-1] != wanted or not x.is_floating_point():
            raise UserError(
                f"coder {self.name!r} reads rows of {wanted} numbers, but x is {tuple(x.shape)} {x.dtype}: "
                f"give activations at {' '.join(map(str, self.wiring.reads))}"
            )
        return x.reshape(-1, wanted)

    def _rows_of(self, codes: Latents, x: Tensor) -> Tensor:
        rows = self._rows(x)
        if len(rows) != len(codes):
            raise UserError(
                f"coder {self.name!r} received codes of {len(codes)} rows, but x has {len(rows)}: give the rows that "
                "were encoded"
            )
        return rows
