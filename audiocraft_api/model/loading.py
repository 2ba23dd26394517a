"""Loads a model: finds its files, checks them, builds it. The message of a failure says what to do.

Importing this module does not import torch. `checkpoint` builds the modules, `hub` finds the repositories by id.
"""

from __future__ import annotations

import importlib
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiocraft_api.config import Config
from audiocraft_api.core.constants import FRAME_RATE
from audiocraft_api.core.errors import ModelUnavailable
from audiocraft_api.core.load_progress import LoadProgress, ReportProgress, ignore
from audiocraft_api.core.out_of_memory import is_out_of_memory
from audiocraft_api.model import checkpoint_file, revisions, training_checkpoint, transformers_checkpoint
from audiocraft_api.model.catalog import Catalog, ModelSpec
from audiocraft_api.model.hub import Hub, WrongCheckpoint

if TYPE_CHECKING:
    import torch

    from audiocraft_api.model.audiocraft_adapter import LoadedModel

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 60.0
_ADAPTER = "audiocraft_api.model.audiocraft_adapter"  # imports torch, transformers and audiocraft


def import_libraries() -> None:
    """Import torch, transformers and audiocraft, which takes seconds; later calls return at once.

    Other threads wait until the import is complete, because all of them import the same module first. Raises
    ModelUnavailable.
    """
    is_first = _ADAPTER not in sys.modules
    begin = time.monotonic()
    try:
        importlib.import_module(_ADAPTER)
    except Exception:
        logger.exception("PyTorch or audiocraft cannot be imported.")
        raise ModelUnavailable(
            "PyTorch or audiocraft is missing or broken on the server. Install the locked requirements again.",
            _RETRY_SECONDS,
        ) from None
    if is_first:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        logger.info("Imported PyTorch and audiocraft in %.1f s.", time.monotonic() - begin)


def load_model(spec: ModelSpec, catalog: Catalog, config: Config, report: ReportProgress = ignore) -> LoadedModel:
    """Load a model from its files. Raises ModelUnavailable; a failed load keeps nothing in memory."""
    begin = time.monotonic()
    report(LoadProgress("reading"))
    logger.info("Loading %s.", spec.name)
    try:
        import_libraries()
        model = _load(spec, catalog, config, report)
    except ModelUnavailable as error:
        logger.warning("Loading %s failed: %s", spec.name, error)
        raise
    except WrongCheckpoint as error:
        logger.warning("Loading %s failed: %s", spec.name, error)
        raise ModelUnavailable(
            f"The checkpoint of {spec.name!r} cannot be used: {error}. {error.remedy}.", _RETRY_SECONDS
        ) from None
    # Third-party code reads arbitrary files here and may raise anything, and each request needs a response.
    except Exception as error:
        logger.exception("Loading %s failed.", spec.name)
        raise ModelUnavailable(_sentence(spec, error), _RETRY_SECONDS) from None
    logger.info("Loaded %s on %s in %.1f s.", spec.name, model.device, time.monotonic() - begin)
    return model


def _load(spec: ModelSpec, catalog: Catalog, config: Config, report: ReportProgress) -> LoadedModel:
    from audiocraft_api.model.audiocraft_adapter import LoadedModel
    from audiocraft_api.model.checkpoint import BUILDING, load_codec, load_language_model

    directory, revision = revisions.locate(spec, catalog, config, report)
    report(LoadProgress("reading"))
    revisions.check_sums(spec, directory)
    device = choose_device(config.models.device)
    # MPS computes the codec's convolutions incorrectly.
    codec_device = device if device.type != "mps" else choose_device("cpu")
    with _opened(directory) as (codec_package, lm_package, *hubs), BUILDING:
        files = Hub(*hubs, directory / "hub", offline=config.models.offline, report=report)
        codec = load_codec(codec_package, files, codec_device)
        lm = load_language_model(lm_package, files, device, revisions.weights_name(directory))
    model = LoadedModel(spec, revision, lm, codec)
    _check_abilities(model)
    return model


@contextmanager
def _opened(directory: Path) -> Iterator[Sequence[Any]]:
    """Yield the packages of the codec and of the language model, then the hub caches that belong to them alone."""
    if transformers_checkpoint.is_in(directory):
        with transformers_checkpoint.opened(directory) as opened:
            yield opened
        return
    path, codec = revisions.language_model_file(directory), directory / revisions.CODEC
    language_model = _package(path)
    yield _package(codec) if codec.is_file() else training_checkpoint.named_codec(language_model, path), language_model


def _package(path: Path) -> checkpoint_file.Package:
    """Read a file, in the form in which audiocraft exports it. A trainer's state is several times as large."""
    is_training = path.match(training_checkpoint.PATTERN)
    return training_checkpoint.exported(checkpoint_file.read(path, mapped=is_training), path.name)


def choose_device(wanted: str) -> torch.device:
    """Return the device of the setting `device`; `auto` is CUDA, then MPS, then the CPU. Raises ModelUnavailable."""
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name, is_present in present.items() if is_present)
    if not present[wanted]:
        raise ModelUnavailable(
            f"The server is configured to use {wanted}, which this machine does not have.", _RETRY_SECONDS
        )
    return torch.device(wanted)


def _check_abilities(model: LoadedModel) -> None:
    spec = model.spec
    if model.frame_rate != FRAME_RATE:
        raise WrongCheckpoint(
            f"its codec has {model.frame_rate:g} frames per second, and this server supports only {FRAME_RATE}"
        )
    if model.max_window_frames < int(spec.window_seconds * FRAME_RATE):
        raise WrongCheckpoint(
            f"it is declared with window_seconds={spec.window_seconds:g}, but it was trained on "
            f"{model.max_window_frames / FRAME_RATE:g} seconds: declare that in the models file"
        )
    declared = (spec.melody, spec.channels, spec.sample_rate, spec.num_codebooks)
    found = (model.has_melody, model.channels, model.sample_rate, model.num_codebooks)
    if declared != found:
        raise WrongCheckpoint(
            f"it is declared with melody={declared[0]}, channels={declared[1]}, sample_rate={declared[2]}, "
            f"num_codebooks={declared[3]}, but its files have {', '.join(map(str, found))}"
        )


def _sentence(spec: ModelSpec, error: Exception) -> str:
    if is_out_of_memory(error):
        return f"There is not enough memory to load {spec.name!r}. Use a smaller model, or free memory and try again."
    if isinstance(error, ImportError):
        return f"A package that {spec.name!r} needs is missing or broken. Install the locked requirements again."
    return f"The checkpoint of {spec.name!r} is damaged or is not a MusicGen model. Fetch or export it again."
