"""The sizes of a language model that a plan needs, found without reading its weights: widths, layers, parameter counts.

Models listed in `panscope/builtin/facts/models.toml` need no network either: their counts are computed from their
shapes. Any other model is built on torch's `meta` device, which allocates no memory, and its parameters are counted.

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
    """The model's path in the config: a hub id, a folder or a built-in name."""
    n_layers: int = Field(gt=0)
    """The number of blocks."""
    d_model: int = Field(gt=0)
    """Width of the residual stream."""
    heads_width: int = Field(gt=0)
    """Width of all attention heads together, before W_O."""
    vocabulary: int = Field(gt=0)
    """Rows of the embedding."""
    context: int = Field(gt=0)
    """Maximum sequence length in tokens."""
    parameters: int = Field(gt=0)
    """All parameters, tied ones counted once."""
    matmul_parameters: int = Field(gt=0)
    """Parameters of the matrices that each token is multiplied by: those of the blocks and the unembedding, but not the
    embedding, which is a look-up."""

    def width(self, site: Site) -> int:
        """D of `site`; raises UserError if the model has no such layer."""
        if site.layer >= self.n_layers:
            raise UserError(
                f"layer {site.layer} of site {str(site)!r} does not exist: "
                f"this model has {self.n_layers} layers, so choose from 0 to {self.n_layers - 1}"
            )
        return self.heads_width if KINDS[site.kind].heads_wide else self.d_model


class FamilyShape(Config):
    """The parts of a family's blocks; models.toml documents the fields."""

    block_norms: int
    norm_bias: bool
    gated_mlp: bool
    biases: bool
    qk_norms: bool
    learned_positions: bool


class Vision(Config):
    """A SigLIP image encoder with its projection into a language model."""

    layers: int
    width: int
    mlp: int
    patch: int
    image: int

    def parameters(self, d_model: int) -> int:
        """Count of parameters: patch and position embeddings, blocks with biases and two norms, final norm, projection
        and its norm."""
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
        """Parameters of one block's matrices: D H + 2 D K + H D + 2 D M, or + 3 D M with a gate."""
        d, q, k = self.d_model, self.heads * self.head_dim, self.kv_heads * self.head_dim
        return d * q + 2 * d * k + q * d + (3 if family.gated_mlp else 2) * d * self.mlp

    def block_vectors(self, family: FamilyShape) -> int:
        """Parameters of one block's gains and biases."""
        d, q, k = self.d_model, self.heads * self.head_dim, self.kv_heads * self.head_dim
        norms = family.block_norms * d * (2 if family.norm_bias else 1) + 2 * self.head_dim * family.qk_norms
        return norms + (q + 2 * k + d + self.mlp + d) * family.biases

    def parameters(self, family: FamilyShape) -> int:
        """Parameters of the blocks, embedding, unembedding if not tied, final norm and learned positions; without the
        image encoder."""
        d = self.d_model
        blocks = self.layers * (self.block_matmul(family) + self.block_vectors(family))
        embeddings = self.vocabulary * d * (1 if self.tied else 2) + self.context * d * family.learned_positions
        return blocks + embeddings + d * (2 if family.norm_bias else 1)

    def matmul_parameters(self, family: FamilyShape) -> int:
        """Parameters of the blocks' matrices and the unembedding."""
        return self.layers * self.block_matmul(family) + self.vocabulary * self.d_model


def facts_of(config: LanguageModelConfig) -> ModelFacts:
    """The facts of the model that `config` names; reads no weights.

    Raises UserError if there is no such model or its family is not supported.
    """
    known = built_in_facts()
    if config.path in known and not os.path.isdir(expanded(config.path)):
        return known[config.path]
    return _facts_by_counting(config)


def full_hub_id(name: str) -> str:
    """The hub id of a model of models.toml, given its name without the owner or its TransformerLens name; else `name`.

    Case is ignored. A name that fits several models is returned as it is.
    """
    ours = read_toml(TABLE)["models"]
    found = [
        hub_id
        for hub_id, fields in ours.items()
        if name.lower() in (hub_id.partition("/")[2].lower(), *fields.get("also", ()))
    ]
    return found[0] if len(found) == 1 else name


def built_in_facts() -> dict[str, ModelFacts]:
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


def _facts_by_counting(config: LanguageModelConfig) -> ModelFacts:
    """The facts of a model, found by building it on the `meta` device."""
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
