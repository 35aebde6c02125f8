"""What every sparse coder is: an encoder, a decoder and a loss over rows, in the space its normaliser put them in.

A coder knows nothing of language models, sites, devices or schedules. The sparsity in force (K, or the penalty's
coefficient) is an argument of the loss, so that schedules stay outside.

Shape letters: B rows, D input width (d_in), E output width (d_out), F latents (width).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from panscope.config import Config
from panscope.kernels import reference
from panscope.types import Latents


class CoderConfig(Config):
    """What every architecture has; each adds its own fields and fixes `architecture`."""

    architecture: str
    d_in: int = Field(gt=0)
    """Width of the rows it reads."""
    d_out: int = Field(gt=0)
    """Width of the rows it predicts."""
    width: int = Field(gt=0)
    """How many latents."""
    sparsity: float = Field(gt=0)
    """K of the TopK family; else the coefficient of the sparsity penalty."""
    pre_encoder_bias: bool = False
    """Subtract b_dec from the input first (Gemma Scope, Gao et al.); needs d_in = d_out."""
    decoder_norm: Literal["unit", "free"] = "unit"
    """Keep every latent's decoder vector at norm 1, or let the norms be learned."""
    decoder_init_norm: float = Field(default=1.0, gt=0)
    """Norm of every decoder vector at the start."""
    encoder_init: Literal["transpose", "own"] = "transpose"
    """Start W_enc as a copy of W_dec, or from its own random draw (transcoders)."""


@dataclass(frozen=True)
class Objective:
    """What one look at a batch gives: the loss to minimise and the parts that metrics need."""

    loss: Tensor
    """[] mean over rows."""
    latents: Latents
    y_hat: Tensor
    """[B, E]."""


class Coder(nn.Module, ABC):
    """The parameters W_enc [F, D], b_enc [F], W_dec [F, E], b_dec [E] and the pure functions over them.

    Latent-major: a latent's two vectors are two contiguous rows.
    """

    def __init__(self, config: CoderConfig) -> None:
        super().__init__()
        self.config = config
        self.W_enc = nn.Parameter(torch.zeros(config.width, config.d_in))
        self.b_enc = nn.Parameter(torch.zeros(config.width))
        self.W_dec = nn.Parameter(torch.zeros(config.width, config.d_out))
        self.b_dec = nn.Parameter(torch.zeros(config.d_out))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> Self:
        """Fresh weights: He-uniform decoder vectors brought to the stated norm, encoder after them, biases 0."""
        self.W_dec.copy_(_directions(self.W_dec, generator) * self.config.decoder_init_norm)
        if self.config.encoder_init == "transpose":
            self.W_enc.copy_(self.W_dec)
        else:
            self.W_enc.copy_(_directions(self.W_enc, generator) * self.config.decoder_init_norm)
        self.b_enc.zero_()
        self.b_dec.zero_()
        return self

    def preactivations(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, F]."""
        centred = x - self.b_dec if self.config.pre_encoder_bias else x
        return reference.preactivations(centred, self.W_enc, self.b_enc)

    @abstractmethod
    def encode(self, x: Tensor) -> Latents:
        """The codes of rows x [B, D] at the configured sparsity."""

    def decode(self, latents: Latents) -> Tensor:
        """The rows [B, E] that codes stand for."""
        return reference.decode(latents.dense(), self.W_dec, self.b_dec)

    @abstractmethod
    def objective(self, x: Tensor, y: Tensor, sparsity: float) -> Objective:
        """The training loss on rows x [B, D] and targets y [B, E], at the sparsity now in force."""

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring the parameters back to where they may be; called after every update."""
        if self.config.decoder_norm == "unit":
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(torch.finfo(self.W_dec.dtype).tiny))

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Before an update: for a unit decoder, take out of W_dec's gradient the part along each vector.

        Gemma Scope section 3.2; Bricken et al. 2023.
        """
        if self.config.decoder_norm == "unit":
            gradient = self.W_dec.grad
            assert gradient is not None
            along = (gradient * self.W_dec).sum(dim=1, keepdim=True)
            gradient.addcmul_(along, self.W_dec, value=-1)

    def tensors(self) -> dict[str, Tensor]:
        """The weights as they are stored and published."""
        names = ("W_enc", "b_enc", "W_dec", "b_dec")
        return {name: getattr(self, name).detach().clone() for name in names}

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> Self:
        """Take over weights that `tensors()` gave; shapes must fit."""
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(self, name).copy_(tensors[name])
        return self


def squared_error(y_hat: Tensor, y: Tensor) -> Tensor:
    """The squared distance summed over dimensions, averaged over rows (Gemma Scope Eq. 4)."""
    return (y_hat - y).square().sum(dim=1).mean()


def _directions(like: Tensor, generator: torch.Generator) -> Tensor:
    """Unit vectors in the rows of a matrix shaped as `like`, from a uniform draw.

    He-uniform fixes only the range of the draw; every use of it here sets the norm afterwards, so the range drops out.
    """
    draw = torch.rand(like.shape, generator=generator, dtype=like.dtype) * 2 - 1
    return nn.functional.normalize(draw, dim=1).to(like.device)
