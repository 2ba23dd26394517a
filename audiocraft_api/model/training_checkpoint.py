"""Reads what audiocraft's trainer saves: the state of a solver, which Dora keeps as `checkpoint.th`.

`exported` makes of it what audiocraft's own export does (`audiocraft/utils/export.py`), so that the same code builds
the model. Importing this module does not import torch.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from audiocraft_api.model.checkpoint_file import Package
from audiocraft_api.model.hub import WrongCheckpoint

PATTERN = "*.th"
USUAL_NAME = "checkpoint.th"
CODEC = "compression_state_dict.bin"

_PRETRAINED = "//pretrained/"  # audiocraft `solvers/compression.py::CompressionSolver.model_from_checkpoint`
_ADD_CODEC = (
    f"Add the codec as {CODEC}: a file that audiocraft's export_encodec wrote, or the {USUAL_NAME} of the codec's "
    "training"
)

logger = logging.getLogger(__name__)


def file_in(directory: Path) -> Path | None:
    """Return a directory's checkpoint of the trainer, or None. Raises WrongCheckpoint if it has several."""
    found = sorted(directory.glob(PATTERN))
    usual = directory / USUAL_NAME
    if usual in found or not found:
        return usual if found else None
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise WrongCheckpoint(f"{directory.name} contains {names}", f"Rename one of them to {USUAL_NAME}")
    return found[0]


def exported(package: Package, name: str) -> Package:
    """Return what audiocraft would export from a trainer's checkpoint; any other package as it is.

    The weights are copied: those of the file may be mapped into memory. Raises WrongCheckpoint.
    """
    from omegaconf import DictConfig, OmegaConf

    if "pytorch-lightning_version" in package:
        raise WrongCheckpoint(
            f"{name} was saved by PyTorch Lightning and not by audiocraft",
            "Convert it to a checkpoint of audiocraft or transformers first",
        )
    configuration = package.get("xp.cfg")
    if not isinstance(configuration, DictConfig):
        return package
    weights = {key: value.clone() for key, value in _weights(package, name).items()}
    return {"xp.cfg": OmegaConf.to_yaml(configuration), "best_state": weights}


def _weights(package: Package, name: str) -> dict[str, Any]:
    """Return the weights of the best epoch, or the latest ones if the trainer has not evaluated any."""
    for key in ("fsdp_best_state", "best_state"):
        best = package.get(key)
        if isinstance(best, dict) and isinstance(best.get("model"), dict):
            return best["model"]
    if not isinstance(package.get("model"), dict):
        raise WrongCheckpoint(f"{name} has a training configuration, but neither best_state nor model")
    logger.warning("%s contains no best weights yet; the latest ones are used.", name)
    latest: dict[str, Any] = package["model"]
    return latest


def require_language_model(configuration: Any, name: str) -> None:
    """Raise WrongCheckpoint if the training configuration of a file is that of a codec."""
    if configuration.get("lm_model") is None and configuration.get("compression_model") is not None:
        raise WrongCheckpoint(
            f"{name} contains a codec, not a language model",
            f"Name it {CODEC}, and put the language model that was trained with it next to it",
        )


def named_codec(language_model: Package, path: Path) -> Package:
    """Return the codec that the language model of a file was trained with, if that was a released one.

    Raises WrongCheckpoint.
    """
    from omegaconf import OmegaConf

    reference = None
    if isinstance(language_model.get("xp.cfg"), str):
        configuration = OmegaConf.create(language_model["xp.cfg"])
        require_language_model(configuration, path.name)
        reference = configuration.get("compression_model_checkpoint")
    if isinstance(reference, str) and reference.startswith(_PRETRAINED):
        return {"pretrained": reference.removeprefix(_PRETRAINED)}
    trained = "" if reference is None else f", and {reference!r}, which it was trained with, is not a released codec"
    raise WrongCheckpoint(f"{path.parent.name} contains no {CODEC}{trained}", _ADD_CODEC)
