"""What every sparse coder is: an encoder, a decoder and a loss over rows, in the space its normaliser put them in.

A coder knows nothing of language models, sites, devices or schedules. The sparsity in force (K, or the penalty's
coefficient) is an argument of the loss, so that schedules stay outside.

Shape letters: B rows, D input width (d_in), E output width (d_out), F latents (width).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from panscope.config import Config
from panscope.kernels import reference
from panscope.types import Latents, UserError


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

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.d_in != self.d_out and self.pre_encoder_bias:
            raise ValueError(
                f"pre_encoder_bias is true, but d_in {self.d_in} and d_out {self.d_out} differ: set it false"
            )
        if self.d_in != self.d_out and self.encoder_init == "transpose":
            raise ValueError(
                f"encoder_init is 'transpose', but d_in {self.d_in} and d_out {self.d_out} differ: use 'own'"
            )
        if self.decoder_norm == "unit" and self.decoder_init_norm != 1:
            raise ValueError(
                f"decoder_init_norm is {self.decoder_init_norm:g}, but decoder_norm is 'unit': set it to 1"
            )
        return self


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

    Latent-major: a latent's two vectors are two contiguous rows. An architecture adds its own parameters and names in
    `positive` those that must stay above 0.
    """

    positive: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: CoderConfig) -> None:
        super().__init__()
        self.config = config
        self.W_enc = nn.Parameter(torch.zeros(config.width, config.d_in))
        self.b_enc = nn.Parameter(torch.zeros(config.width))
        self.W_dec = nn.Parameter(torch.zeros(config.width, config.d_out))
        self.b_dec = nn.Parameter(torch.zeros(config.d_out))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> Self:
        """Fresh weights: He-uniform vectors brought to `decoder_init_norm` (an encoder of its own too), biases 0."""
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
        smallest = torch.finfo(self.W_dec.dtype).tiny
        if self.config.decoder_norm == "unit":
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(smallest))
        for name in self.positive:
            self.get_parameter(name).clamp_(min=smallest)

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
        """The weights as they are stored and published: a copy of every parameter."""
        return {name: parameter.detach().clone() for name, parameter in self.named_parameters()}

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> Self:
        """Take over weights that `tensors()` gave; raises UserError unless every one is there, fits and is a number."""
        for name, parameter in self.named_parameters():
            found = tuple(tensors[name].shape) if name in tensors else None
            if found != tuple(parameter.shape):
                raise UserError(f"tensor {name!r} has shape {found}, expected {tuple(parameter.shape)}")
            if not torch.isfinite(tensors[name]).all():
                raise UserError(f"tensor {name!r} holds NaN or infinity; take undamaged weights")
            if name in self.positive and not (tensors[name] > 0).all():
                raise UserError(f"tensor {name!r} holds values that are not above 0; take undamaged weights")
            parameter.copy_(tensors[name])
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
