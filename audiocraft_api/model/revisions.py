"""Which files a model is made of and which revision they are, before anything is loaded. Never imports torch.

A revision is the hub's commit, or 40 digits that follow the content of local files. It speaks of the checkpoint's own
two files; text encoder, codec and separator are those that they name.
"""

from __future__ import annotations

from pathlib import Path

from audiocraft_api.config import Config
from audiocraft_api.core.errors import ModelUnavailable
from audiocraft_api.model import checkpoint_file, hub
from audiocraft_api.model.catalog import Catalog, ModelSpec
from audiocraft_api.model.hub import Hub, WrongCheckpoint

LANGUAGE_MODEL, CODEC = (name for (name,) in hub.CHECKPOINT.groups)


def locate(spec: ModelSpec, catalog: Catalog, config: Config) -> tuple[Path, str]:
    """Return a checkpoint's directory and revision, downloaded or built if need be.

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
    """Return the revision that a load would find now, or None where it cannot be told without a download.

    Quick: files that have not changed are not read again.
    """
    try:
        directory = present(spec, catalog)
        if directory is None:
            return None
        return directory.name if directory != catalog.local_directory(spec) else _fingerprint(directory)
    except (WrongCheckpoint, ModelUnavailable, OSError):  # whoever loads it is told what is wrong
        return None


def present(spec: ModelSpec, catalog: Catalog) -> Path | None:
    """Return a checkpoint's directory where it is on this machine. Raises ModelUnavailable."""
    directory = catalog.local_directory(spec)
    if directory is not None or spec.is_built_in:
        return directory
    return Hub().present(spec.checkpoint, hub.CHECKPOINT, spec.revision)


def check_sum(spec: ModelSpec, directory: Path, name: str) -> None:
    """Compare a checkpoint's file with the SHA-256 that the models file pins, if any. Raises WrongCheckpoint.

    An unchanged file is read once for it.
    """
    pinned = {LANGUAGE_MODEL: spec.sha256, CODEC: spec.codec_sha256}[name]
    if pinned is not None and (found := checkpoint_file.sha256(directory / name)) != pinned:
        raise WrongCheckpoint(f"{name} has the SHA-256 {found}, and the models file pins {pinned}")


def _fingerprint(directory: Path) -> str:
    for name in (LANGUAGE_MODEL, CODEC):
        if not (directory / name).is_file():
            raise WrongCheckpoint(f"{directory.name} holds no {name}")
    return checkpoint_file.fingerprint(directory / LANGUAGE_MODEL, directory / CODEC)
