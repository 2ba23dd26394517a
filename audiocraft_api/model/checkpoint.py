"""Builds audiocraft's own classes from a checkpoint's files, quickly and safely.

The language model is built on the meta device and gets the file's tensors, so that no weight is initialized only to be
overwritten. audiocraft receives local directories only, never ids that it would download.
"""

from __future__ import annotations

import threading
import warnings
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
from audiocraft.modules.conditioners import ChromaStemConditioner, ConditioningProvider, T5Conditioner
from omegaconf import DictConfig, OmegaConf
from transformers import T5EncoderModel
from transformers.initialization import no_init_weights

from audiocraft_api.model import hub, training_checkpoint
from audiocraft_api.model.checkpoint_file import Package
from audiocraft_api.model.hub import Hub, WrongCheckpoint

# Hold this lock while building a model. transformers replaces torch's initializers temporarily, for the whole process:
# two concurrent builds could leave them replaced. Global, because what it protects is global.
BUILDING = threading.RLock()

# The parts of audiocraft's `LMModel` that decode; the others compute conditions.
DECODER_PARTS = ("emb", "transformer", "out_norm", "linears")


def load_language_model(package: Package, files: Hub, device: torch.device, name: str = "state_dict.bin") -> LMModel:
    """Build the language model of a file called `name` with its conditioners, as audiocraft's `load_lm_model` does.

    On the CPU the decoder's weights keep the file's dtype, half the size of float32: model runners pack them from it.
    """
    config = _configuration(package, "language model", name)
    training_checkpoint.require_language_model(config, name)
    if config.get("lm_model") != "transformer_lm":
        raise WrongCheckpoint(f"{name} contains a {config.get('lm_model')!r}, not a MusicGen language model")
    if others := set(config.get("conditioners") or ()) - {"args", "description", "self_wav"}:
        raise WrongCheckpoint(f"{name} needs {min(others)!r} beside a text and a melody, which no request has")
    model = build_language_model(config, files, device)
    assign(model, package["best_state"], device, name, as_stored=DECODER_PARTS if device.type == "cpu" else ())
    return model


def _configuration(package: Package, kind: str, name: str) -> DictConfig:
    """Return the training configuration of a package with weights. Raises WrongCheckpoint."""
    if isinstance(package.get("xp.cfg"), str) and isinstance(package.get("best_state"), dict):
        return OmegaConf.create(package["xp.cfg"])
    has_weights = any(isinstance(package.get(key), dict) for key in ("best_state", "model", "state_dict"))
    reason = ": it contains weights, but no training configuration (xp.cfg)" if has_weights else ""
    raise WrongCheckpoint(f"{name} is not a {kind} exported by audiocraft{reason}")


def build_language_model(config: DictConfig, files: Hub, device: torch.device) -> LMModel:
    """Build the language model of a training configuration on the meta device, with real conditioners."""
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
    if "self_wav" in provider.conditioners:  # as in MusicGen.get_pretrained
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
        provider = builders.get_conditioner_provider(config.transformer_lm.dim, config)
    for conditioner in provider.conditioners.values():
        if isinstance(conditioner, ChromaStemConditioner):
            separator.make_repeatable(conditioner)
    return provider


def _text_encoder(name: str, files: Hub) -> str:
    """Return a directory that audiocraft's T5Conditioner accepts in place of a name."""
    path = files.snapshot(name, hub.TEXT_ENCODER)
    directory = str(path)
    # audiocraft does not check for missing weights.
    encoder = _complete(T5EncoderModel, path)
    if directory not in T5Conditioner.MODELS_DIMS:
        T5Conditioner.MODELS.append(directory)
    T5Conditioner.MODELS_DIMS[directory] = encoder.config.d_model
    return directory


def _complete(kind: Any, directory: Path) -> Any:
    """Load a transformers model. Raises WrongCheckpoint for a missing weight, which transformers would initialize."""
    model, report = kind.from_pretrained(directory, output_loading_info=True)
    if report["missing_keys"]:
        raise WrongCheckpoint(
            f"{directory.parent.parent.name} is missing weights, such as {min(report['missing_keys'])}"
        )
    return model


class _CompleteEncodec(HFEncodecModel):
    """A codec whose weights must all be in the file: initializing them would take most of the loading time."""

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Initialize only what no file contains, such as the strides of convolutions."""
        if not isinstance(module, (torch.nn.Conv1d, torch.nn.ConvTranspose1d, torch.nn.LSTM)):
            super()._init_weights(module)


def load_codec(package: Package, files: Hub, device: torch.device) -> CompressionModel:
    """Build the codec of `compression_state_dict.bin`: audiocraft's own, or the hub's codec that it names."""
    if "pretrained" in package:
        directory = files.snapshot(str(package["pretrained"]), hub.CODEC)
        model: CompressionModel = HFEncodecCompressionModel(_complete(_CompleteEncodec, directory))
        return model.to(device).eval().requires_grad_(False)
    config = _configuration(package, "codec", "compression_state_dict.bin")
    if config.get("lm_model") is not None:
        raise WrongCheckpoint("compression_state_dict.bin contains a language model, not a codec")
    model = build_codec(config)
    assign(model.eval(), package["best_state"], device, "compression_state_dict.bin")
    return model


def build_codec(config: DictConfig) -> CompressionModel:
    """Build audiocraft's own codec of a training configuration on the CPU, with weights that it draws."""
    config.device = "cpu"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*weight_norm. is deprecated", FutureWarning)  # audiocraft uses it
        return builders.get_compression_model(config)


def assign(
    model: torch.nn.Module, state: dict[str, Any], device: torch.device, name: str, as_stored: Sequence[str] = ()
) -> None:
    """Assign the tensors of a file to a module, in the module's dtypes; the parts `as_stored` keep the file's.

    Empties `state`, so that the module alone owns each tensor and can free it. Raises WrongCheckpoint.
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
            raise WrongCheckpoint(f"{name} does not contain this model's weights ({reason})") from None
        model.to(device).requires_grad_(False)
