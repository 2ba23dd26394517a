"""Load a model: find its files, check them, build it; a failure is one sentence that says what to do.

Free of torch until a model is really loaded. `checkpoint` builds the modules, `hub` finds what the hub's ids name.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from audiocraft_api.config import Config
from audiocraft_api.core.errors import ModelUnavailable
from audiocraft_api.model import checkpoint_file, revisions
from audiocraft_api.model.audiocraft_imports import COLLECTOR_PAUSED
from audiocraft_api.model.catalog import UNTRAINED_NOTICE, Catalog, ModelSpec
from audiocraft_api.model.hub import Hub, WrongCheckpoint

if TYPE_CHECKING:
    import torch

    from audiocraft_api.model.audiocraft_adapter import LoadedModel

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 60.0


def read_ahead(spec: ModelSpec, catalog: Catalog) -> None:
    """Begin what a load waits for longest and needs no torch, beside torch's import. What fails is told by the load."""

    def begin() -> None:
        directory = revisions.present(spec, catalog)
        if directory is not None:
            checkpoint_file.read_ahead(directory / revisions.LANGUAGE_MODEL)

    checkpoint_file.in_thread(begin)


def load_model(spec: ModelSpec, catalog: Catalog, config: Config) -> LoadedModel:
    """Load a model from scratch. Raises ModelUnavailable; nothing of a failed load is kept."""
    begin = time.monotonic()
    logger.info("Loading %s.", spec.name)
    try:
        with COLLECTOR_PAUSED:
            model = _load(spec, catalog, config)
    except ModelUnavailable as error:
        logger.warning("Loading %s failed: %s", spec.name, error)
        raise
    except WrongCheckpoint as error:
        logger.warning("Loading %s failed: %s", spec.name, error)
        raise ModelUnavailable(
            f"The checkpoint of {spec.name!r} cannot be used: {error}. Fetch or export it again.", _RETRY_SECONDS
        ) from None
    # Files of any kind meet third-party readers here: what they raise is not foreseeable, and every waiter must be told.
    except Exception as error:
        logger.exception("Loading %s failed.", spec.name)
        raise ModelUnavailable(_sentence(spec, error), _RETRY_SECONDS) from None
    logger.info("Loaded %s on %s in %.1f s.", spec.name, model.device, time.monotonic() - begin)
    if spec.is_built_in:
        logger.warning("%s: %s", spec.name, UNTRAINED_NOTICE)
    return model


def _load(spec: ModelSpec, catalog: Catalog, config: Config) -> LoadedModel:
    directory, revision = revisions.locate(spec, catalog, config)
    device = choose_device(config.models.device)

    def read(name: str) -> checkpoint_file.Package:
        revisions.check_sum(spec, directory, name)
        return checkpoint_file.read(directory / name)

    # Both take seconds, and reading does not need Python's lock.
    weights = checkpoint_file.in_thread(lambda: read(revisions.LANGUAGE_MODEL))
    from audiocraft_api.model.audiocraft_adapter import LoadedModel
    from audiocraft_api.model.checkpoint import BUILDING, load_codec, load_language_model

    files = Hub(directory / "hub", offline=config.models.offline)
    # MPS computes the codec's convolutions wrongly.
    codec_device = device if device.type != "mps" else choose_device("cpu")
    try:
        with BUILDING:
            codec = load_codec(read(revisions.CODEC), files, codec_device)
            lm = load_language_model(weights.result(), files, device)
    finally:
        checkpoint_file.let_go(directory / revisions.LANGUAGE_MODEL)
    model = LoadedModel(spec, revision, lm, codec)
    _check_abilities(model)
    return model


def choose_device(wanted: str) -> torch.device:
    """Return the device of the setting `device`; `auto` is CUDA, then MPS, then the CPU. Raises ModelUnavailable."""
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name, is_present in present.items() if is_present)
    if not present[wanted]:
        raise ModelUnavailable(f"The server is set to use {wanted}, which this machine does not have.", _RETRY_SECONDS)
    return torch.device(wanted)


def _check_abilities(model: LoadedModel) -> None:
    spec = model.spec
    declared = (spec.melody, spec.channels, spec.sample_rate, spec.num_codebooks)
    found = (model.has_melody, model.channels, model.sample_rate, model.num_codebooks)
    if declared != found:
        raise WrongCheckpoint(
            f"it is declared with melody={declared[0]}, channels={declared[1]}, sample_rate={declared[2]}, "
            f"num_codebooks={declared[3]}, and its files have {', '.join(map(str, found))}"
        )


def _sentence(spec: ModelSpec, error: Exception) -> str:
    # torch's allocator on the CPU raises a plain RuntimeError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
        return f"There is not enough memory to load {spec.name!r}. Use a smaller model, or free memory and try again."
    if isinstance(error, ImportError):
        return f"A package that {spec.name!r} needs is missing or broken: install the locked requirements again."
    return f"The checkpoint of {spec.name!r} is damaged or not of a MusicGen model. Fetch or export it again."
