"""A model of the llama2.c project as a Hugging Face folder: its weights (.bin) and its tokenizer (.bin).

The weights are seven int32 (width, hidden width, layers, heads, key-value heads, vocabulary, context) and then float32
tensors, those of all layers together. Rotary embeddings turn neighbouring dimensions (0 and 1, 2 and 3 ...) in
llama2.c, and dimensions of the two halves of a head (0 and d/2 ...) in Hugging Face's Llama, so that the rows of the
query and key matrices are put in another order. The tokenizer is SentencePiece's BPE: of two neighbouring pieces, those
are merged first that give the piece with the highest score.

Shape letters: L layers, H heads, d width of a head, D width, V vocabulary.
"""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from panscope.types import UserError

_HEADER = struct.Struct("<7i")
_SPACE = "▁"
_UNKNOWN, _BOS, _EOS = "<unk>", "<s>", "</s>"


def write_model(weights: Path, tokenizer: Path, folder: Path) -> None:
    """Write the model and its tokenizer into `folder`; raises UserError if a file is not as llama2.c writes it."""
    config, state = read_weights(weights)
    model = LlamaForCausalLM(config)
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(read_tokenizer(tokenizer, config.vocab_size), ensure_ascii=False))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": _BOS, "eos_token": _EOS}
    settings |= {"unk_token": _UNKNOWN, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def read_weights(path: Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """The configuration and the tensors of a file of weights, in Hugging Face's layout."""
    raw = path.read_bytes()
    if len(raw) < _HEADER.size:
        raise UserError(f"{str(path)!r} has {len(raw)} bytes: expected weights of llama2.c")
    width, hidden, layers, heads, kv_heads, vocabulary, context = _HEADER.unpack_from(raw)
    if min(width, hidden, layers, heads, kv_heads, vocabulary, context) < 1 or width % heads:
        raise UserError(f"{str(path)!r} is not a file of llama2.c with a shared output matrix")
    keys = width // heads * kv_heads
    shapes = {
        "embed_tokens": (vocabulary, width),
        "input_layernorm": (layers, width),
        "self_attn.q_proj": (layers, width, width),
        "self_attn.k_proj": (layers, keys, width),
        "self_attn.v_proj": (layers, keys, width),
        "self_attn.o_proj": (layers, width, width),
        "post_attention_layernorm": (layers, width),
        "mlp.gate_proj": (layers, hidden, width),
        "mlp.down_proj": (layers, width, hidden),
        "mlp.up_proj": (layers, hidden, width),
        "norm": (width,),
    }
    rotary = context * (width // heads)
    expected = _HEADER.size + 4 * (sum(map(np.prod, shapes.values())) + rotary)
    if len(raw) != expected:
        raise UserError(f"{str(path)!r} has {len(raw)} bytes, and its header says {expected}: download it again")
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=context, rms_norm_eps=1e-5,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, dtype="float32",
    )  # fmt: skip
    return config, _state(raw, shapes, {"q_proj": heads, "k_proj": kv_heads})


def _state(raw: bytes, shapes: dict[str, tuple[int, ...]], heads: dict[str, int]) -> dict[str, Tensor]:
    """The tensors by Hugging Face's names."""
    state: dict[str, Tensor] = {}
    offset = _HEADER.size
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        tensor = torch.from_numpy(np.frombuffer(raw, "<f4", count, offset).reshape(shape).copy())
        offset += 4 * count
        if name in ("embed_tokens", "norm"):
            state[f"model.{name}.weight"] = tensor
            continue
        for layer, own in enumerate(tensor):
            turned = heads.get(name.partition(".")[2])
            state[f"model.layers.{layer}.{name}.weight"] = own if turned is None else _halves(own, turned)
    return state


def _halves(matrix: Tensor, heads: int) -> Tensor:
    """Rows [H d, D] with the pairs of each head apart: first dimensions of all pairs, then the second ones."""
    rows, width = matrix.shape
    return matrix.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width).contiguous()


def read_tokenizer(path: Path, vocabulary: int) -> dict[str, Any]:
    """The contents of tokenizer.json; raises UserError if the file has other than `vocabulary` pieces."""
    pieces, scores = _pieces(path, vocabulary)
    ids = {piece: number for number, piece in enumerate(pieces)}
    special = [_UNKNOWN, _BOS, _EOS]
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    text = {"String": _SPACE}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[piece], "content": piece} | added for piece in special],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": _SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": _BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {_BOS: {"id": _BOS, "ids": [ids[_BOS]], "tokens": [_BOS]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": text, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": _UNKNOWN,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": ids,
            "merges": _merges(ids, scores),
        },
    }


def _pieces(path: Path, vocabulary: int) -> tuple[list[str], list[float]]:
    """The pieces, with a mark for a space, and their scores."""
    raw, offset = path.read_bytes(), 4
    pieces, scores = [], []
    try:
        for _ in range(vocabulary):
            score, length = struct.unpack_from("<fi", raw, offset)
            piece = raw[offset + 8 : offset + 8 + length].decode("utf-8")
            pieces.append(piece.strip("\n") if piece.strip() in (_BOS, _EOS) else piece.replace(" ", _SPACE))
            scores.append(score)
            offset += 8 + length
    except (struct.error, UnicodeDecodeError):
        offset = -1
    if offset != len(raw):
        raise UserError(f"{str(path)!r} is not a tokenizer of {vocabulary} pieces as llama2.c writes it")
    return pieces, scores


def _merges(ids: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every pair of pieces that gives a piece, best piece first."""
    pairs = [
        (-scores[number], number, piece[:cut], piece[cut:])
        for piece, number in ids.items()
        if not (piece.startswith("<") and piece.endswith(">"))
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    return [(left, right) for _, _, left, right in sorted(pairs)]
