"""What every sparse coder is: an encoder, a decoder and a loss over rows, in the space its normaliser put them in.

A coder knows nothing of language models, sites, devices or schedules. The sparsity in force (K, or the penalty's
coefficient) is an argument of the loss, so that schedules stay outside; so are the verbs it is computed with (`ops`),
so that the same lines train with the reference and with sparse kernels.

Shape letters: B rows, D input width (d_in), E output width (d_out), F latents (width).
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from panscope.config import Config
from panscope.kernels import reference
from panscope.ops.base import Decoded, Encoder, Ops, Rows
from panscope.ops.dense import DenseOps
from panscope.types import Latents, UserError

_MATCHING_ROWS = 256
"""Random vectors on which `encoder_init = "transpose_matched"` measures the reconstruction's size."""


class CoderConfig(Config):
    """What every architecture has; each adds its own fields and fixes `architecture`."""

    selects_k: ClassVar[bool] = False
    """Whether `sparsity` is K; else it is the coefficient of a penalty."""
    keeps_k_a_row: ClassVar[bool] = False
    """Whether every row has K codes at most, so that the memory of a step is known."""
    default_recipe: ClassVar[str] = "panscope"
    """Where a suite file names none."""
    largest_coefficient: ClassVar[tuple[float, str] | None] = None
    """The largest `sparsity` of any recipe or suite, and of which (docs/recipes.md); None where it is K."""
    frozen_decodes: ClassVar[int] = 0
    """How often a step reconstructs through a decoder that learns nothing of it."""
    has_estimator_window: ClassVar[bool] = False
    """Whether latents that are not active, near their threshold, get gradients too."""

    architecture: str
    """The name under which it is known in suite files."""
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
    encoder_init: Literal["transpose", "transpose_matched", "own"] = "transpose"
    """Start W_enc as a copy of W_dec; as that copy scaled so that random unit vectors come out with mean norm 1 (Gao et
    al.); or from its own random draw (transcoders)."""
    encoder_bias: bool = True
    """Learn b_enc, or keep it at 0 (Multi-Layer SAE)."""
    skip: bool = False
    """Add W_skip x to the output: the affine skip of transcoders (Gemma Scope 2)."""
    prefixes: tuple[float, ...] = ()
    """Matryoshka: rising shares of the width, the last one 1. The loss is the mean of the reconstruction losses of the
    latents in each prefix alone; left empty, only the whole reconstructs."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.d_in != self.d_out and self.pre_encoder_bias:
            raise ValueError(
                f"pre_encoder_bias is true, but d_in {self.d_in} and d_out {self.d_out} differ: set it false"
            )
        if self.d_in != self.d_out and self.encoder_init != "own":
            raise ValueError(
                f"encoder_init is {self.encoder_init!r}, but d_in {self.d_in} and d_out {self.d_out} differ: use 'own'"
            )
        if self.decoder_norm == "unit" and self.decoder_init_norm != 1:
            raise ValueError(
                f"decoder_init_norm is {self.decoder_init_norm:g}, but decoder_norm is 'unit': set it to 1"
            )
        return self

    @model_validator(mode="after")
    def _prefixes_rise(self) -> Self:
        if not self.prefixes:
            return self
        ends = [0, *self.prefix_ends()]
        if self.prefixes[-1] != 1 or any(end <= start for start, end in itertools.pairwise(ends)):
            raise ValueError(
                f"prefixes {list(self.prefixes)} must be rising shares of the width {self.width}, each at least one "
                "latent more than the one before, the last one 1"
            )
        return self

    def sparsity_aim(self) -> tuple[Literal["K", "L0", "lambda"], float]:
        """What training is asked for: K, an L0 to reach, or the coefficient of a penalty."""
        return ("K" if self.selects_k else "lambda"), self.sparsity

    def codes_of_a_step(self, active: float) -> tuple[float, ...]:
        """Codes a row of each reconstruction that a step learns from, where `active` latents are active."""
        return (active,)

    def why_not_jumprelu(self) -> str:
        """Why a finished coder cannot be turned into JumpReLU, with what to do; empty where it can."""
        return f"architecture {self.architecture!r} does not keep the K largest of each row: leave convert_to out"

    def prefix_ends(self) -> list[int]:
        """How many latents each prefix has; the whole width where there are none."""
        return [round(share * self.width) for share in self.prefixes or (1.0,)]


@dataclass(frozen=True)
class Objective:
    """What one batch gives: the loss to minimise and the parts that metrics need."""

    loss: Tensor
    """[]."""
    latents: Latents
    y_hat: Tensor
    """[B, E]."""
    errors: Tensor
    """[B] squared distance of y_hat from the targets, without gradient."""
    least: Tensor | None = None
    """[] the least score a batch-wide selection kept; None where there is no such selection."""


class Coder(nn.Module, ABC):
    """The parameters W_enc [F, D], b_enc [F], W_dec [F, E], b_dec [E] and the pure functions over them.

    Latent-major: a latent's two vectors are two contiguous rows. An architecture adds its own parameters, names in
    `positive` those that must stay above 0, and in `in_code_units` those [F] that grow with the codes when they are
    rescaled. `skip` adds W_skip [E, D].
    """

    positive: ClassVar[tuple[str, ...]] = ()
    in_code_units: ClassVar[tuple[str, ...]] = ("b_enc",)

    def __init__(self, config: CoderConfig) -> None:
        super().__init__()
        self.config = config
        self.W_enc = nn.Parameter(torch.zeros(config.width, config.d_in))
        self.b_enc = nn.Parameter(torch.zeros(config.width), requires_grad=config.encoder_bias)
        self.W_dec = nn.Parameter(torch.zeros(config.width, config.d_out))
        self.b_dec = nn.Parameter(torch.zeros(config.d_out))
        if config.skip:
            self.W_skip = nn.Parameter(torch.zeros(config.d_out, config.d_in))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> Self:
        """Fresh weights: He-uniform vectors brought to `decoder_init_norm` (an encoder of its own too), biases 0."""
        self.W_dec.copy_(_directions(self.W_dec, generator) * self.config.decoder_init_norm)
        if self.config.encoder_init == "own":
            self.W_enc.copy_(_directions(self.W_enc, generator) * self.config.decoder_init_norm)
        else:
            self.W_enc.copy_(self.W_dec)
        self.b_enc.zero_()
        self.b_dec.zero_()
        if self.config.encoder_init == "transpose_matched":
            x = _directions(self.W_enc[:1].expand(_MATCHING_ROWS, -1), generator)
            none_dead = torch.zeros(self.config.width, dtype=torch.bool, device=x.device)
            y_hat = self.objective(Rows.mean(x, x, none_dead), self.config.sparsity, DenseOps()).y_hat
            size = y_hat.norm(dim=1).mean()
            if not size > 0:
                raise UserError(
                    "encoder_init is 'transpose_matched', but no latent is active at the start: use 'transpose'"
                )
            self.W_enc.div_(size)
        return self

    def encoder(self) -> Encoder:
        """What turns rows into pre-activations."""
        return Encoder(self.W_enc, self.b_enc, self.b_dec if self.config.pre_encoder_bias else None)

    def preactivations(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, F]."""
        centred = x - self.b_dec if self.config.pre_encoder_bias else x
        return reference.preactivations(centred, self.W_enc, self.b_enc)

    @abstractmethod
    def encode(self, x: Tensor) -> Latents:
        """The codes of rows x [B, D] at the configured sparsity."""

    def decode(self, latents: Latents, x: Tensor) -> Tensor:
        """The reconstruction [B, E] from the codes of x [B, D]; x itself matters only to a coder with a skip."""
        return reference.decode(latents.dense(), self.W_dec, self.base(x))

    @abstractmethod
    def objective(self, rows: Rows, sparsity: float, ops: Ops) -> Objective:
        """The training loss on rows, at the sparsity now in force, computed with `ops`."""

    def track(self, least: Tensor | None) -> None:
        """Note `Objective.least` of a training batch, once a step, for an architecture that averages it."""

    def reconstruction(self, latents: Latents, rows: Rows, ops: Ops) -> Decoded:
        """The reconstruction loss and the reconstruction.

        The loss is the rows' weighted squared error; with `prefixes`, its mean over the reconstructions by the first
        latents alone, each with b_dec (Bussmann et al. 2025, Matryoshka).
        """
        return ops.reconstruct(latents, self.W_dec, self.base(rows.x), rows, self.config.prefix_ends())

    def base(self, x: Tensor) -> Tensor:
        """The reconstruction without any latent: b_dec [E], or b_dec + W_skip x [B, E]."""
        return torch.addmm(self.b_dec, x, self.W_skip.T) if self.config.skip else self.b_dec

    @torch.no_grad()
    def constrain(self) -> None:
        """Project the parameters onto their constraints; called after every update."""
        if self.config.decoder_norm == "unit":
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(torch.finfo(self.W_dec.dtype).tiny))
        self.keep_positive()

    @torch.no_grad()
    def keep_positive(self) -> None:
        """Bring the parameters in `positive` back above 0."""
        for name in self.positive:
            parameter = self.get_parameter(name)
            parameter.clamp_(min=torch.finfo(parameter.dtype).tiny)

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
        """The weights as they are stored and published: a copy of every parameter and running figure."""
        return {name: tensor.detach().clone() for name, tensor in self._named_tensors()}

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> Self:
        """Take over weights that `tensors()` gave; raises UserError unless every one is there, fits and is a number."""
        for name, own in self._named_tensors():
            found = tuple(tensors[name].shape) if name in tensors else None
            if found != tuple(own.shape):
                raise UserError(f"tensor {name!r} has shape {found}, expected {tuple(own.shape)}")
            if not torch.isfinite(tensors[name]).all():
                raise UserError(f"tensor {name!r} holds NaN or infinity; take undamaged weights")
            if name in self.positive and not (tensors[name] > 0).all():
                raise UserError(f"tensor {name!r} holds values that are not above 0; take undamaged weights")
            own.copy_(tensors[name])
        return self

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.named_parameters()
        yield from self.named_buffers()


def squared_error(y_hat: Tensor, rows: Rows) -> Tensor:
    """[] the squared distances of y_hat [B, E] from the targets, summed over dimensions, weighted over rows."""
    return (rows.weights * (y_hat - rows.y).square().sum(dim=1)).sum()


def _directions(like: Tensor, generator: torch.Generator) -> Tensor:
    """Unit vectors in the rows of a matrix shaped as `like`, from a uniform draw.

    He-uniform fixes only the range of the draw; every use of it here sets the norm afterwards, so the range drops out.
    """
    draw = torch.rand(like.shape, generator=generator, dtype=like.dtype) * 2 - 1
    return nn.functional.normalize(draw, dim=1).to(like.device)
