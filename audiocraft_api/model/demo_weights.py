"""Expands the shipped numbers of a demo model to the tensors of a checkpoint.

`demo_models/export.py` writes the numbers. Tables are stored as rows that codes share, and added up here in a fixed
order, so that the same bytes come out on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5Tokenizer

Array = NDArray[Any]

# Attention scores in the text encoder: of the neighbor that a head copies from, and of the word itself where there is
# no neighbor.
_NEIGHBOR, _ITSELF = 40.0, 20.0

# The words that deny the next one. At the end of a text there is none, so the end receives nothing from them.
NEGATIONS = ("no", "without", "not", "minus", "w/o", "nor", "or", "zero", "sans")
_END = 1  # the tokenizer's piece
# The attention knows the end and the negations by two flags in dimensions that are otherwise zero: too small to change
# the meaning of a word, and so strongly weighted that the end never looks at a negation.
_FLAG, _FLAG_WEIGHT = 1e-4, 32_768.0


def read(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the arrays and the facts of a file of numbers."""
    with safe_open(path, framework="numpy") as file:
        facts = json.loads(file.metadata()["facts"])
        return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118


def tokenizer(facts: Mapping[str, Any]) -> T5Tokenizer:
    """Return the T5 tokenizer with the pieces of a model."""
    pieces = [(piece, score) for piece, score in facts["pieces"]]
    return T5Tokenizer(vocab=pieces, extra_ids=0, additional_special_tokens=[])


def text_encoder(numbers: Mapping[str, Array], facts: Mapping[str, Any]) -> T5EncoderModel:
    """Return a T5 encoder whose attention copies dimensions `facts["effect"]` of neighbors, one head for each offset.

    The end of the text does not receive what a negation does to its neighbors. The feed-forward part is zero.
    """
    embeddings = numbers["text.words"].astype(np.float32)[numbers["text.pieces"]]
    start, size, offsets = facts["effect_start"], facts["effect_size"], facts["offsets"]
    negations = [i for i, (piece, _) in enumerate(facts["pieces"]) if piece.removeprefix("▁").lower() in NEGATIONS]
    embeddings[_END, -1] = embeddings[negations, -2] = _FLAG
    config = T5Config(
        vocab_size=len(embeddings), d_model=embeddings.shape[1], d_kv=size, d_ff=16, num_layers=1,
        num_heads=len(offsets), dropout_rate=0.0,
    )  # fmt: skip
    model = T5EncoderModel(config).eval()
    block = model.encoder.block[0]
    attention = block.layer[0].SelfAttention
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.shared.weight.copy_(torch.tensor(embeddings))
        for head, offset in enumerate(offsets):
            bucket = -offset if offset < 0 else config.relative_attention_num_buckets // 2 + offset
            attention.relative_attention_bias.weight[bucket, head] = _NEIGHBOR
            attention.relative_attention_bias.weight[0, head] = _ITSELF
            attention.q.weight[head * size, -1] = _FLAG_WEIGHT
            attention.k.weight[head * size, -2] = -_FLAG_WEIGHT
            for i in range(size):
                attention.v.weight[head * size + i, start + i] = 1.0
                attention.o.weight[start + size * (1 + head) + i, head * size + i] = 1.0
        for norm in (block.layer[0].layer_norm, block.layer[1].layer_norm, model.encoder.final_layer_norm):
            norm.weight.fill_(1.0)
    return model


def language_model_state(numbers: Mapping[str, Array], prefix: str = "lm.") -> dict[str, Tensor]:
    """Return the half-precision tensors of the language model by audiocraft's names."""
    state = {}
    for name, array in numbers.items():
        key = name.removeprefix(prefix)
        if not name.startswith(prefix) or key.endswith(".index"):
            continue
        if key.endswith(".rows"):
            array, key = _table(array, numbers[f"{prefix}{key[:-5]}.index"]), f"{key[:-5]}.weight"
        state[key] = torch.tensor(array.astype(np.float16))
    return dict(sorted(state.items()))


def _table(rows: Array, index: Array) -> Array:
    """Return the sums of the rows that `index` [codes, n] names. Row 0 is zero."""
    rows = rows.astype(np.float32)
    table = np.zeros((len(index), rows.shape[1]), np.float32)
    for column in index.T:
        table += rows[column]
    return table
