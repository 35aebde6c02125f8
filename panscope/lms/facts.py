"""What a plan must know of a language model, found without reading a weight: widths, layers and parameter counts.

Models of `panscope/builtin/facts/models.toml` need no network either; their counts follow from their shapes by formula.
Any other model is built on torch's `meta` device, which has shapes and no memory, and counted.

Formula letters: L layers, D residual width, H width of all query heads, K width of all key heads, M hidden width of the
MLP, V vocabulary. A block multiplies each token by D H + 2 D K + H D (attention) and by 2 D M, or 3 D M with a gate
(MLP) weights; the unembedding by V D.
"""

import os

import torch
import transformers
from pydantic import Field

from panscope import builtin
from panscope.config import Config, expanded, read_toml
from panscope.lms.families import family_of
from panscope.lms.load import LanguageModelConfig, as_user_error, pretrained
from panscope.site_kinds import KINDS
from panscope.types import Site, UserError

TABLE = builtin.MODEL_FACTS


class ModelFacts(Config):
    """One language model's sizes."""

    name: str
    """As it was asked for: a hub id, a folder or a built-in name."""
    n_layers: int = Field(gt=0)
    d_model: int = Field(gt=0)
    """Width of the residual stream."""
    heads_width: int = Field(gt=0)
    """Width of all attention heads together, before W_O."""
    vocabulary: int = Field(gt=0)
    """Rows of the embedding."""
    context: int = Field(gt=0)
    """Positions the model has."""
    parameters: int = Field(gt=0)
    """All weights that are loaded, each once."""
    matmul_parameters: int = Field(gt=0)
    """Weights that each token is multiplied by: the matrices of the blocks and the unembedding, no look-up."""

    def width(self, site: Site) -> int:
        """D of `site`; raises UserError if the model has no such layer."""
        if site.layer >= self.n_layers:
            raise UserError(
                f"layer {site.layer} of site {str(site)!r} does not exist: "
                f"this model has {self.n_layers} layers, so choose from 0 to {self.n_layers - 1}"
            )
        return self.heads_width if KINDS[site.kind].heads_wide else self.d_model


class FamilyShape(Config):
    """What the blocks of a family hold; models.toml says what the fields mean."""

    block_norms: int
    norm_bias: bool
    gated_mlp: bool
    biases: bool
    qk_norms: bool
    learned_positions: bool


class Vision(Config):
    """An image encoder of the SigLIP kind, with its projection into a language model."""

    layers: int
    width: int
    mlp: int
    patch: int
    image: int

    def parameters(self, d_model: int) -> int:
        """Patch and position embeddings, blocks with biases and two norms, last norm, projection and its norm."""
        width, mlp = self.width, self.mlp
        embeddings = 3 * self.patch**2 * width + width + (self.image // self.patch) ** 2 * width
        block = 4 * (width * width + width) + 2 * width * mlp + mlp + width + 4 * width
        return embeddings + self.layers * block + 2 * width + width * d_model + width


class ModelShape(Config):
    """One model of models.toml."""

    family: str
    vision: str | None = None
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    context: int
    tied: bool

    def block_matmul(self, family: FamilyShape) -> int:
        """Weights of the matrices of one block: D H + 2 D K + H D, and 2 or 3 times D M."""
        d, q, k = self.d_model, self.heads * self.head_dim, self.kv_heads * self.head_dim
        return d * q + 2 * d * k + q * d + (3 if family.gated_mlp else 2) * d * self.mlp

    def block_vectors(self, family: FamilyShape) -> int:
        """Gains and biases of one block."""
        d, q, k = self.d_model, self.heads * self.head_dim, self.kv_heads * self.head_dim
        norms = family.block_norms * d * (2 if family.norm_bias else 1) + 2 * self.head_dim * family.qk_norms
        return norms + (q + 2 * k + d + self.mlp + d) * family.biases

    def parameters(self, family: FamilyShape) -> int:
        """Blocks, embedding (twice where it is not tied), last norm and learned positions; without image encoder."""
        d = self.d_model
        blocks = self.layers * (self.block_matmul(family) + self.block_vectors(family))
        embeddings = self.vocabulary * d * (1 if self.tied else 2) + self.context * d * family.learned_positions
        return blocks + embeddings + d * (2 if family.norm_bias else 1)

    def matmul_parameters(self, family: FamilyShape) -> int:
        """The blocks' matrices and the unembedding."""
        return self.layers * self.block_matmul(family) + self.vocabulary * self.d_model


def facts_of(config: LanguageModelConfig) -> ModelFacts:
    """The facts of the model that `config` names; no weight is read.

    Raises UserError if there is no such model or its family is not supported.
    """
    known = tabled()
    if config.path in known and not os.path.isdir(expanded(config.path)):
        return known[config.path]
    return _counted(config)


def in_full(name: str) -> str:
    """The hub id of a model of models.toml that is named without its owner, or as TransformerLens does; else `name`."""
    ours = read_toml(TABLE)["models"]
    found = [
        hub_id
        for hub_id, fields in ours.items()
        if name.lower() in (hub_id.partition("/")[2].lower(), *fields.get("also", ()))
    ]
    return found[0] if len(found) == 1 else name


def tabled() -> dict[str, ModelFacts]:
    """The facts of every model of models.toml, by hub id."""
    tables = read_toml(TABLE)
    families = {name: FamilyShape.read(fields, name) for name, fields in tables["families"].items()}
    visions = {name: Vision.read(fields, name) for name, fields in tables["vision"].items()}
    found = {}
    for name, fields in tables["models"].items():
        own = tables["models"][fields["same_as"]] if "same_as" in fields else fields
        shape = ModelShape.read({key: value for key, value in own.items() if key != "also"}, name)
        family = families[shape.family]
        images = visions[shape.vision].parameters(shape.d_model) if shape.vision else 0
        found[name] = ModelFacts(
            name=name,
            n_layers=shape.layers,
            d_model=shape.d_model,
            heads_width=shape.heads * shape.head_dim,
            vocabulary=shape.vocabulary,
            context=shape.context,
            parameters=shape.parameters(family) + images,
            matmul_parameters=shape.matmul_parameters(family),
        )
    return found


def _counted(config: LanguageModelConfig) -> ModelFacts:
    """The facts of a model by building it without memory."""
    source, options = pretrained(config)
    with as_user_error(config):
        whole = transformers.AutoConfig.from_pretrained(source, **options)
    blocks = family_of(whole.model_type).blocks
    with as_user_error(config), torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(whole)
    text = whole.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    layers = model.get_submodule(blocks)
    unembedding = model.get_output_embeddings().weight
    return ModelFacts(
        name=config.path,
        n_layers=len(list(layers.children())),
        d_model=text.hidden_size,
        heads_width=text.num_attention_heads * head_dim,
        vocabulary=text.vocab_size,
        context=text.max_position_embeddings,
        parameters=sum(weight.numel() for weight in model.parameters()),
        matmul_parameters=unembedding.numel() + sum(w.numel() for w in layers.parameters() if w.ndim == 2),
    )
