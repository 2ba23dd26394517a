"""Creates the audio store that the settings select, and checks its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audiocraft_api.config import Config, ConfigError, variable_name
from audiocraft_api.core.observer import NULL_OBSERVER, Observer
from audiocraft_api.storage.base import AudioStore
from audiocraft_api.storage.local import LocalStore

if TYPE_CHECKING:
    from audiocraft_api.storage.s3 import S3Store


def create_store(config: Config, observer: Observer = NULL_OBSERVER) -> AudioStore:
    """Create the store without contacting it. Its failures are reported to `observer`. Raises ConfigError."""
    if config.storage.backend == "s3":
        return _create_s3(config, observer)
    return LocalStore(config.storage, observer)


def check_store(config: Config) -> None:
    """Contact a remote store and check the settings. Raises ConfigError.

    An unreachable store is only logged, because it may become reachable while this server runs.
    """
    if config.storage.backend == "s3":
        _create_s3(config).check_settings()


def _create_s3(config: Config, observer: Observer = NULL_OBSERVER) -> S3Store:
    if not config.storage.s3_bucket:
        raise ConfigError(
            f"{variable_name('s3_bucket')} is not set: {variable_name('audio_store')}=s3 requires a bucket"
        )
    if config.storage.max_total_bytes and "max_total_bytes" in config.storage.model_fields_set:
        raise ConfigError(
            f"{variable_name('audio_max_total_bytes')}={config.storage.max_total_bytes} is not supported with "
            f"{variable_name('audio_store')}=s3: remove it or set it to 0"
        )
    from audiocraft_api.storage.s3 import S3Store  # boto3 takes a third of a second to import

    # Half of the threads: while the store hangs, the other half can serve requests that do not need the store.
    return S3Store(config.storage, max_calls=max(config.server.threads // 2, 2), observer=observer)
