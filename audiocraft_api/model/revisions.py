"""Finds the files of a model and their revision, without loading them. Imports torch only to build a demo checkpoint.

A revision is the hub's commit, or 40 hex digits that depend on the content of local files. Of a checkpoint that
audiocraft exported, it covers the two files, which name the text encoder, the codec and the separator.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from audiocraft_api.config import Config
from audiocraft_api.core.errors import ModelUnavailable
from audiocraft_api.core.load_progress import ReportProgress, ignore
from audiocraft_api.model import checkpoint_file, hub, training_checkpoint, transformers_checkpoint
from audiocraft_api.model.catalog import Catalog, ModelSpec
from audiocraft_api.model.hub import Hub, WrongCheckpoint

LANGUAGE_MODEL, CODEC = "state_dict.bin", training_checkpoint.CODEC


def locate(spec: ModelSpec, catalog: Catalog, config: Config, report: ReportProgress = ignore) -> tuple[Path, str]:
    """Return a checkpoint's directory and revision; download or build it if necessary.

    Raises WrongCheckpoint, ModelUnavailable.
    """
    directory = catalog.local_directory(spec)
    if directory is None and spec.is_built_in:
        from audiocraft_api.model import demo

        directory = demo.build(spec.name, config.models.checkpoints_dir).absolute()
    if directory is None:
        files = Hub(offline=config.models.offline, report=report)
        snapshot = files.snapshot(spec.checkpoint, hub.CHECKPOINT, spec.revision)
        return snapshot, snapshot.name
    return directory, _fingerprint(directory)


def known_revision(spec: ModelSpec, catalog: Catalog) -> str | None:
    """Return the revision that a load would find now, or None if it is unknown before a download.

    Fast: unchanged files are not read again.
    """
    try:
        directory = present(spec, catalog)
        if directory is None:
            return None
        return directory.name if directory != catalog.local_directory(spec) else _fingerprint(directory)
    except (WrongCheckpoint, ModelUnavailable, OSError):  # loading it reports the error
        return None


def present(spec: ModelSpec, catalog: Catalog) -> Path | None:
    """Return a checkpoint's directory if it is on this machine, else None. Raises ModelUnavailable."""
    directory = catalog.local_directory(spec)
    if directory is not None or spec.is_built_in:
        return directory
    return Hub().present(spec.checkpoint, hub.CHECKPOINT, spec.revision)


def check_sums(spec: ModelSpec, directory: Path) -> None:
    """Compare files of a checkpoint with the SHA-256 values that the models file pins. Raises WrongCheckpoint."""
    for name, pinned in zip((weights_name(directory), CODEC), (spec.sha256, spec.codec_sha256), strict=True):
        if pinned is None:
            continue
        if not (directory / name).is_file():
            raise WrongCheckpoint(
                f"the models file pins the SHA-256 of {name}, which {directory.name} does not contain"
            )
        if (found := checkpoint_file.sha256(directory / name)) != pinned:
            raise WrongCheckpoint(f"{name} has the SHA-256 {found}, but the models file pins {pinned}")


def _fingerprint(directory: Path) -> str:
    if transformers_checkpoint.is_in(directory):
        digests = "".join(checkpoint_file.sha256(path) for path in transformers_checkpoint.files(directory))
        return hashlib.sha256(digests.encode()).hexdigest()[:40]
    codec = directory / CODEC
    return checkpoint_file.fingerprint(language_model_file(directory), *([codec] if codec.is_file() else []))


def weights_name(directory: Path) -> str:
    """Return the name of the file with the weights of the language model. Raises WrongCheckpoint."""
    if transformers_checkpoint.is_in(directory):
        return transformers_checkpoint.WEIGHTS
    return language_model_file(directory).name


def language_model_file(directory: Path) -> Path:
    """Return the file of the language model in a directory of audiocraft's. Raises WrongCheckpoint."""
    if (directory / LANGUAGE_MODEL).is_file():
        return directory / LANGUAGE_MODEL
    found = training_checkpoint.file_in(directory)
    if found is not None:
        return found
    if (directory / "adapter_config.json").is_file():
        raise WrongCheckpoint(f"{directory.name} contains a LoRA adapter only", "Merge it into its model first")
    raise WrongCheckpoint(
        f"{directory.name} contains no {LANGUAGE_MODEL}, which audiocraft exports, no {training_checkpoint.USUAL_NAME} "
        f"of its trainer, and no {transformers_checkpoint.CONFIGURATION} of transformers"
    )
