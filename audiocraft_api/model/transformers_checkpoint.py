"""Reads checkpoints that transformers saved, `MusicgenForConditionalGeneration` and its melody variant.

`opened` presents one as the two packages and the hub cache of a checkpoint that audiocraft exported, so that the same
code builds the model. Importing this module does not import torch.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiocraft_api.model import released_configuration
from audiocraft_api.model.checkpoint_file import Package
from audiocraft_api.model.hub import WrongCheckpoint

if TYPE_CHECKING:
    from torch import Tensor

    State = dict[str, Tensor]

CONFIGURATION = "config.json"
WEIGHTS = "model.safetensors"  # unless they are split into several files

_TEXT_ENCODER_ID = "this-checkpoint/text-encoder"
_CODEC_ID = "this-checkpoint/codec"
_TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json", "special_tokens_map.json")
_KINDS = ("musicgen", "musicgen_melody")

# Source: transformers' `convert_musicgen_transformers.py` and `convert_musicgen_melody_transformers.py`, which map the
# other way.
_LAYER = r"decoder\.model\.decoder\.layers\.(\d+)\."
_NAMES = tuple(
    (re.compile(theirs), ours)
    for theirs, ours in (
        (r"decoder\.model\.decoder\.embed_tokens\.(\d+)\.", r"emb.\1."),
        (_LAYER + r"self_attn\.", r"transformer.layers.\1.self_attn."),
        (_LAYER + r"encoder_attn\.", r"transformer.layers.\1.cross_attention."),
        (_LAYER + r"self_attn_layer_norm\.", r"transformer.layers.\1.norm1."),
        (_LAYER + r"encoder_attn_layer_norm\.", r"transformer.layers.\1.norm_cross."),
        (_LAYER + r"final_layer_norm\.", r"transformer.layers.\1.norm2."),
        (_LAYER + r"fc([12])\.", r"transformer.layers.\1.linear\2."),
        (r"decoder\.model\.decoder\.layer_norm\.", "out_norm."),
        (r"decoder\.lm_heads\.(\d+)\.", r"linears.\1."),
        (r"enc_to_dec_proj\.", "condition_provider.conditioners.description.output_proj."),
        (r"audio_enc_to_dec_proj\.", "condition_provider.conditioners.self_wav.output_proj."),
    )
)
_COMPUTED = "embed_positions.weights"  # older versions of transformers saved the sinusoids, too
_QUERY = ".q_proj.weight"
_CHROMA_WINDOW = "condition_provider.conditioners.self_wav.chroma.spec.window"
_CHROMA_WINDOW_SIZE = 2**14


def is_in(directory: Path) -> bool:
    """Whether a directory contains a checkpoint of transformers and none of audiocraft."""
    return (directory / CONFIGURATION).is_file() and not (directory / "state_dict.bin").exists()


def files(directory: Path) -> list[Path]:
    """Return the files that determine what the model generates. Raises WrongCheckpoint."""
    weights = _weight_files(directory)
    tokenizer = [directory / name for name in _TOKENIZER_FILES[:2] if (directory / name).is_file()]
    if not tokenizer:
        raise WrongCheckpoint(f"{directory.name} contains no tokenizer.json: save the processor next to the model")
    return [directory / CONFIGURATION, *weights, *tokenizer]


@contextmanager
def opened(directory: Path) -> Iterator[tuple[Package, Package, Path]]:
    """Yield the packages of the codec and of the language model, and a hub cache with the parts that they name.

    The cache is a temporary directory, about as large as the text encoder and the codec, and is deleted afterwards.
    Raises WrongCheckpoint.
    """
    paths = files(directory)
    configuration = _configuration(directory)
    state = _read(path for path in paths if path.suffix == ".safetensors")
    with tempfile.TemporaryDirectory(prefix="audiocraft-api-") as temporary:
        hub = Path(temporary)
        encoder = _save(hub, _TEXT_ENCODER_ID, configuration.text_encoder, _taken(state, "text_encoder."))
        for name in _TOKENIZER_FILES:
            if (directory / name).is_file():
                shutil.copy(directory / name, encoder)
        _save(hub, _CODEC_ID, configuration.audio_encoder, _taken(state, "audio_encoder."))
        yield {"pretrained": _CODEC_ID}, _language_model(configuration, state), hub


def _weight_files(directory: Path) -> list[Path]:
    index = directory / f"{WEIGHTS}.index.json"
    names = [WEIGHTS]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise WrongCheckpoint(f"{index.name} is damaged") from None
    for name in names:
        if Path(name).name != name or not (directory / name).is_file():
            raise WrongCheckpoint(f"{directory.name} contains no {name}")
    return [directory / name for name in names]


def _configuration(directory: Path) -> Any:
    """Return transformers' configuration if audiocraft can compute such a model. Raises WrongCheckpoint."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(directory)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, StrictDataclassError) as error:
        raise WrongCheckpoint(f"{CONFIGURATION} is not a configuration of transformers ({error})") from None
    if found.model_type not in _KINDS:
        raise WrongCheckpoint(f"{CONFIGURATION} describes a {found.model_type!r}, not a MusicGen model")
    decoder = found.decoder
    needed = {
        "text_encoder.model_type": (found.text_encoder.model_type, ("t5",)),
        "audio_encoder.model_type": (found.audio_encoder.model_type, ("encodec",)),
        "decoder.num_codebooks": (decoder.num_codebooks, (4 * decoder.audio_channels,)),
        "decoder.activation_function": (decoder.activation_function, ("gelu",)),
        "decoder.scale_embedding": (decoder.scale_embedding, (False,)),
        "decoder.tie_word_embeddings": (decoder.tie_word_embeddings, (False,)),
        "decoder.ffn_dim": (decoder.ffn_dim % decoder.hidden_size, (0,)),
        "num_chroma": (getattr(found, "num_chroma", 12), (12,)),
    }
    for name, (value, accepted) in needed.items():
        if value not in accepted:
            raise WrongCheckpoint(f"{CONFIGURATION} has a value of {name} that audiocraft's MusicGen does not support")
    return found


def _read(paths: Iterator[Path]) -> State:
    """Read tensors into memory, where overwriting the files does not change them. Raises WrongCheckpoint."""
    from safetensors import SafetensorError, safe_open

    state: State = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                state.update((name, file.get_tensor(name).clone()) for name in file.keys())  # noqa: SIM118
        except SafetensorError as error:
            raise WrongCheckpoint(f"{path.name} is damaged ({error})") from None
    return state


def _taken(state: State, prefix: str) -> State:
    """Remove the tensors of one part from `state` and return them by their names in that part."""
    return {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)}


def _save(hub: Path, repository: str, configuration: Any, state: State) -> Path:
    """Store a part as the hub's cache does, and return its directory."""
    from safetensors.torch import save_file

    root = hub / f"models--{repository.replace('/', '--')}"
    directory = root / "snapshots" / "main"
    directory.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("main")
    configuration.save_pretrained(directory)
    save_file(state, directory / WEIGHTS, {"format": "pt"})
    return directory


def _language_model(configuration: Any, state: State) -> Package:
    import torch
    from omegaconf import OmegaConf

    decoder = configuration.decoder
    melody = configuration.model_type == "musicgen_melody"
    training = released_configuration.configuration(
        text_encoder=_TEXT_ENCODER_ID,
        melody=melody,
        stereo=decoder.audio_channels == 2,
        dim=decoder.hidden_size,
        num_heads=decoder.num_attention_heads,
        num_layers=decoder.num_hidden_layers,
        hidden_scale=decoder.ffn_dim // decoder.hidden_size,
        card=decoder.vocab_size,
    )
    mapped = _audiocrafts_names(state)
    if melody:
        mapped[_CHROMA_WINDOW] = torch.hann_window(_CHROMA_WINDOW_SIZE)  # a constant that audiocraft's files contain
    return {"xp.cfg": OmegaConf.to_yaml(OmegaConf.create(training)), "best_state": mapped}


def _audiocrafts_names(state: State) -> State:
    """Return the decoder's tensors as audiocraft names them, with one matrix for query, key and value."""
    import torch

    mapped: State = {}
    for name in list(state):
        if name not in state or name.endswith((_COMPUTED, ".k_proj.weight", ".v_proj.weight")):
            continue
        if not name.endswith(_QUERY):
            mapped[_audiocrafts_name(name)] = state.pop(name)
            continue
        stem = name.removesuffix(_QUERY)
        try:
            parts = [state.pop(f"{stem}.{part}_proj.weight") for part in "qkv"]
        except KeyError as error:
            raise WrongCheckpoint(f"the checkpoint is missing the weight {error.args[0]}") from None
        mapped[f"{_audiocrafts_name(f'{stem}.')}in_proj_weight"] = torch.cat(parts)
    return mapped


def _audiocrafts_name(name: str) -> str:
    """Return a tensor's name in audiocraft; a name that is not MusicGen's stays, and building the model refuses it."""
    for theirs, ours in _NAMES:
        if (match := theirs.match(name)) is not None:
            return match.expand(ours) + name[match.end() :]
    return name
