"""Finds the files of a model and their revision, without loading them. Imports torch only to build a demo checkpoint.

A revision is the hub's commit, or 40 hex digits that depend on the content of local files. Of a checkpoint that
audiocraft exported, it covers the two files, which name the text encoder, the codec and the separator.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from audiocraft_api.config import Config
from audiocraft_api.core.errors import ModelUnavailable
from audiocraft_api.model import checkpoint_file, hub, transformers_checkpoint
from audiocraft_api.model.catalog import Catalog, ModelSpec
from audiocraft_api.model.hub import Hub, WrongCheckpoint

LANGUAGE_MODEL, CODEC = "state_dict.bin", "compression_state_dict.bin"


def locate(spec: ModelSpec, catalog: Catalog, config: Config) -> tuple[Path, str]:
    """Return a checkpoint's directory and revision; download or build it if necessary.

    Raises WrongCheckpoint, ModelUnavailable.
    """
    directory = catalog.local_directory(spec)
    if directory is None and spec.is_built_in:
        from audiocraft_api.model import demo

        directory = demo.build(spec.name, config.models.checkpoints_dir).absolute()
    if directory is None:
        snapshot = Hub(offline=config.models.offline).snapshot(spec.checkpoint, hub.CHECKPOINT, spec.revision)
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
    names = [LANGUAGE_MODEL, CODEC]
    if transformers_checkpoint.is_in(directory):
        names = [transformers_checkpoint.WEIGHTS, CODEC]
    for name, pinned in zip(names, (spec.sha256, spec.codec_sha256), strict=True):
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
    for name in (LANGUAGE_MODEL, CODEC):
        if not (directory / name).is_file():
            raise WrongCheckpoint(f"{directory.name} contains no {name}")
    return checkpoint_file.fingerprint(directory / LANGUAGE_MODEL, directory / CODEC)
