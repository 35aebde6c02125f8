"""Module paths of the parts of each supported family of Hugging Face language models: one table row per family.

Paths are relative to the block, except `blocks`, which is relative to the whole model. To support another family, add a
row: no other file contains module names. The names are those of transformers' `modeling_<family>.py`.
"""

from dataclasses import dataclass

from panscope.types import UserError

_EVERY_ATTENTION = ("sdpa", "eager", "flash_attention_2")


@dataclass(frozen=True)
class ModelFamily:
    """The module paths of one family; in `eval` mode there is no dropout between these modules and the residual."""

    name: str
    model_types: tuple[str, ...]
    """The values of `model_type` in config.json that belong to this family."""
    blocks: str
    """The list of blocks, relative to the whole model."""
    w_o: str
    """The attention's output projection W_O, whose input is the concatenated outputs of the heads."""
    attn_end: str
    """The module whose output attention adds to the residual: W_O, or the post-norm in families that have one."""
    mlp: str
    mlp_end: str
    """The module whose output the MLP adds to the residual: the MLP, or the post-norm in families that have one."""
    mlp_norm: str
    """The norm whose output is the MLP's input."""
    gain_offset: float = 0.0
    """The norm's gain is `gain_offset + weight`."""
    attention: tuple[str, ...] = _EVERY_ATTENTION
    """The attention implementations that are correct for this family; the first is the default."""


def _gemma(name: str, model_type: str, blocks: str, attention: tuple[str, ...]) -> ModelFamily:
    """Gemma 2 and 3: a norm before and after both attention and MLP, gains stored minus one."""
    return ModelFamily(
        name,
        (model_type,),
        blocks,
        w_o="self_attn.o_proj",
        attn_end="post_attention_layernorm",
        mlp="mlp",
        mlp_end="post_feedforward_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        gain_offset=1.0,
        attention=attention,
    )


_SOFTCAPPED = ("eager", "flash_attention_2")
"""Gemma 2 soft-caps its attention scores with a tanh, which torch's sdpa does not support."""

FAMILIES = (
    ModelFamily(
        "GPT-2",
        ("gpt2",),
        "transformer.h",
        w_o="attn.c_proj",
        attn_end="attn.c_proj",
        mlp="mlp",
        mlp_end="mlp",
        mlp_norm="ln_2",
    ),
    ModelFamily(
        "GPT-NeoX",
        ("gpt_neox",),
        "gpt_neox.layers",
        w_o="attention.dense",
        attn_end="attention.dense",
        mlp="mlp",
        mlp_end="mlp",
        mlp_norm="post_attention_layernorm",
    ),
    ModelFamily(
        "Llama",
        ("llama", "mistral", "qwen2", "qwen3", "smollm3"),
        "model.layers",
        w_o="self_attn.o_proj",
        attn_end="self_attn.o_proj",
        mlp="mlp",
        mlp_end="mlp",
        mlp_norm="post_attention_layernorm",
    ),
    _gemma("Gemma 2", "gemma2", "model.layers", _SOFTCAPPED),
    _gemma("Gemma 3", "gemma3_text", "model.layers", _EVERY_ATTENTION),
    _gemma("Gemma 3 with images", "gemma3", "model.language_model.layers", _EVERY_ATTENTION),
)


def family_of(model_type: str) -> ModelFamily:
    """The family that `model_type` of a config belongs to; raises UserError that lists the supported ones."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise UserError(f"model type {model_type!r} is not supported: use a model of one of the types {known}")
