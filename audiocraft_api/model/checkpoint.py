"""Build audiocraft's own classes around a checkpoint's files, quickly and safely.

Classes are built on the meta device and given the file's tensors, so nothing is initialised only to be overwritten.
audiocraft gets local directories only.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audiocraft_api.model import xformers_stub

xformers_stub.install()  # before the first import of audiocraft

# ruff: noqa: E402
import torch
from audiocraft.models import builders
from audiocraft.models.encodec import CompressionModel, HFEncodecCompressionModel, HFEncodecModel
from audiocraft.models.lm import LMModel
from audiocraft.modules.conditioners import ConditioningProvider, T5Conditioner
from omegaconf import DictConfig, OmegaConf
from transformers import T5EncoderModel
from transformers.initialization import no_init_weights

from audiocraft_api.model import hub
from audiocraft_api.model.checkpoint_file import Package
from audiocraft_api.model.hub import Hub, WrongCheckpoint

# transformers patches torch's initialisers for the whole process while it builds a model: two at once end up with
# weights on the meta device. Whoever builds holds this.
BUILDING = threading.RLock()

# The parts of audiocraft's `LMModel` that decode; the rest makes conditions.
DECODER_PARTS = ("emb", "transformer", "out_norm", "linears")


def load_language_model(package: Package, files: Hub, device: torch.device) -> LMModel:
    """Build the language model of `state_dict.bin` with its conditioners, as audiocraft's `load_lm_model` does.

    On the CPU the decoder's weights stay in the file's type, half the size of float32: runners pack them from there.
    """
    if not isinstance(package.get("xp.cfg"), str) or not isinstance(package.get("best_state"), dict):
        raise WrongCheckpoint("state_dict.bin is not a language model exported by audiocraft")
    config = OmegaConf.create(package["xp.cfg"])
    if config.get("lm_model") != "transformer_lm":
        raise WrongCheckpoint(f"state_dict.bin holds a {config.get('lm_model')!r}, not a MusicGen language model")
    model = build_language_model(config, files, device)
    assign(
        model, package["best_state"], device, "state_dict.bin", as_stored=DECODER_PARTS if device.type == "cpu" else ()
    )
    return model


def build_language_model(config: DictConfig, files: Hub, device: torch.device) -> LMModel:
    """Build the language model of a training configuration: itself on the meta device, its conditioners for real."""
    config = config.copy()
    OmegaConf.set_struct(config, False)
    # audiocraft's dtypes (loaders.load_lm_model): half for the transformer on a GPU; MPS computes in float32.
    config.dtype = "float16" if device.type == "cuda" else "float32"
    provider = _conditioners(config, files, device)
    bare = config.copy()
    bare.conditioners, bare.device = None, "meta"
    with torch.device("meta"), no_init_weights():
        model = builders.get_lm_model(bare)
    model.condition_provider = provider
    model.cfg = config
    if "self_wav" in provider.conditioners:  # as MusicGen.get_pretrained
        chroma = provider.conditioners["self_wav"]
        chroma.match_len_on_eval = True
        chroma._use_masking = False
    return model.eval()


def _conditioners(config: DictConfig, files: Hub, device: torch.device) -> ConditioningProvider:
    config = config.copy()
    config.device = device.type
    source = None
    for conditioner in config.conditioners.values():
        arguments = conditioner.get(conditioner.get("model", ""), {})
        if conditioner.get("model") == "t5":
            arguments.name = _text_encoder(arguments.name, files)
            if device.type == "mps":
                arguments.autocast_dtype = None
        elif conditioner.get("model") == "chroma_stem":
            source = arguments.pop("separator", "released")
            arguments.pop("cache_path", None)
    if source is None:
        return builders.get_conditioner_provider(config.transformer_lm.dim, config)
    from audiocraft_api.model import separator  # demucs: only melody models need it

    with separator.provided_by(files, separator.RELEASED_ID if source == "released" else source):
        return builders.get_conditioner_provider(config.transformer_lm.dim, config)


def _text_encoder(name: str, files: Hub) -> str:
    """Return a directory that audiocraft's T5Conditioner takes in the place of a name."""
    path = files.snapshot(name, hub.TEXT_ENCODER)
    directory = str(path)
    # audiocraft does not ask whether all weights were there.
    encoder = _complete(T5EncoderModel, path)
    if directory not in T5Conditioner.MODELS_DIMS:
        T5Conditioner.MODELS.append(directory)
    T5Conditioner.MODELS_DIMS[directory] = encoder.config.d_model
    return directory


def _complete(kind: Any, directory: Path) -> Any:
    """Return a model of transformers from a directory; it would make weights up that are not there."""
    model, report = kind.from_pretrained(directory, output_loading_info=True)
    if report["missing_keys"]:
        raise WrongCheckpoint(f"{directory.parent.parent.name} lacks weights, such as {min(report['missing_keys'])}")
    return model


class _CompleteEncodec(HFEncodecModel):
    """A codec whose weights must all be in the file: making some up first takes most of the time to load it."""

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Initialise only what no file holds, such as the strides of convolutions."""
        if not isinstance(module, (torch.nn.Conv1d, torch.nn.ConvTranspose1d, torch.nn.LSTM)):
            super()._init_weights(module)


def load_codec(package: Package, files: Hub, device: torch.device) -> CompressionModel:
    """Build the codec of `compression_state_dict.bin`: audiocraft's own, or the hub's that it names."""
    if "pretrained" in package:
        directory = files.snapshot(str(package["pretrained"]), hub.CODEC)
        model: CompressionModel = HFEncodecCompressionModel(_complete(_CompleteEncodec, directory))
        return model.to(device).eval().requires_grad_(False)
    if not isinstance(package.get("xp.cfg"), str) or not isinstance(package.get("best_state"), dict):
        raise WrongCheckpoint("compression_state_dict.bin is not a codec exported by audiocraft")
    config = OmegaConf.create(package["xp.cfg"])
    config.device = "cpu"
    model = builders.get_compression_model(config)
    assign(model.eval(), package["best_state"], device, "compression_state_dict.bin")
    return model


def assign(
    model: torch.nn.Module, state: dict[str, Any], device: torch.device, name: str, as_stored: Sequence[str] = ()
) -> None:
    """Give a module the tensors of a file, in the module's dtypes, the parts `as_stored` in the file's.

    `state` is emptied, so that each tensor has one owner, who can let it go. Raises WrongCheckpoint.
    """
    with torch.no_grad():
        expected = model.state_dict()
        own = {}
        for key in list(state):
            tensor = state.pop(key)
            stays = key.partition(".")[0] in as_stored
            keeps = stays and tensor.dtype in (torch.float16, torch.bfloat16)
            dtype = tensor.dtype if keeps or key not in expected else expected[key].dtype
            own[key] = tensor.to(device, dtype)
        try:
            model.load_state_dict(own, assign=True)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise WrongCheckpoint(f"{name} does not hold this model's weights ({reason})") from None
        model.to(device).requires_grad_(False)
