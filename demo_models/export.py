"""Writes what ships of a trained model: `audiocraft_api/model/demo_weights` expands it to a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save

from demo_models import text
from demo_models.codec import Solution
from demo_models.dimensions import DIM, HOP, NUM_HEADS, NUM_LAYERS, WINDOW
from demo_models.language_model import LanguageModel

Array = NDArray[Any]

# The output rows are multiplied by this: the service's default is to sample from the 250 most likely codes at a
# temperature of 1, which takes a wrong code more often than the variety of the music needs.
SHARPNESS = 1.9


def codec_numbers(solution: Solution) -> dict[str, Array]:
    return dataclasses.asdict(solution)


def language_model_numbers(model: LanguageModel) -> dict[str, Array]:
    """Return the arrays of a trained language model and its text encoder, in half precision."""
    arrays: dict[str, Array] = {
        "text.words": _half(model.words()),
        "text.pieces": text.piece_ids().numpy().astype(np.int16),
        "lm.condition_provider.conditioners.description.output_proj.weight": _half(model.project.weight),
        "lm.condition_provider.conditioners.description.output_proj.bias": _half(model.project.bias),
        "lm.out_norm.weight": _half(model.out_norm.weight),
        "lm.out_norm.bias": _half(model.out_norm.bias),
    }
    for kind, tables, scale in (("emb", model.inputs, 1.0), ("linears", model.outputs, SHARPNESS)):
        for k, table in enumerate(tables):
            rows = table.rows().detach().clone() * scale  # type: ignore[operator, union-attr]
            rows[0] = 0
            arrays[f"lm.{kind}.{k}.rows"] = _half(rows)
            arrays[f"lm.{kind}.{k}.index"] = table.index.numpy().astype(np.int16)  # type: ignore[operator, union-attr]
    if model.melody:
        conditioner = "lm.condition_provider.conditioners.self_wav"
        arrays |= {
            f"{conditioner}.output_proj.weight": _half(model.embed_melody.weight),
            f"{conditioner}.output_proj.bias": np.zeros(DIM, np.float16),
            f"{conditioner}.chroma.spec.window": _half(torch.hann_window(WINDOW)),
        }
    for i, layer in enumerate(model.layers):
        arrays |= {f"lm.transformer.layers.{i}.{name}": _half(tensor) for name, tensor in _layer(layer).items()}
    return arrays


def _layer(layer: Any) -> dict[str, torch.Tensor]:
    tensors = {
        "self_attn.in_proj_weight": layer.attend.weight,
        "self_attn.out_proj.weight": layer.attend_out.weight,
        "cross_attention.in_proj_weight": torch.cat((layer.cross.weight, layer.cross_source.weight)),
        "cross_attention.out_proj.weight": layer.cross_out.weight,
        "linear1.weight": layer.up.weight,
        "linear2.weight": layer.down.weight,
    }
    for norm in ("norm1", "norm_cross", "norm2"):
        tensors |= {f"{norm}.weight": getattr(layer, norm).weight, f"{norm}.bias": getattr(layer, norm).bias}
    return tensors


def _half(tensor: Any) -> Array:
    array: Array = tensor.detach().numpy().astype(np.float16)
    return array


def facts(model: LanguageModel | None = None) -> dict[str, Any]:
    """Return what the expansion needs to know of the text encoder and of the language model."""
    return {
        "pieces": text.pieces(),
        "effect_start": text.MEANING,
        "effect_size": text.EFFECT,
        "offsets": text.OFFSETS,
        "configuration": {
            "melody": model is not None and model.melody,
            "stereo": model is not None and model.stereo,
            "dim": DIM,
            "num_heads": NUM_HEADS,
            "num_layers": NUM_LAYERS if model is None else len(model.layers),
        }
        | ({"melody_hop": HOP, "text_in_prefix": False} if model is not None and model.melody else {}),
    }


def write(path: Path, arrays: dict[str, Array], model: LanguageModel | None = None) -> None:
    """Write arrays as safetensors, with the facts in the metadata. The same arrays make the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    path.write_bytes(save(contiguous, {"facts": json.dumps(facts(model))}))
