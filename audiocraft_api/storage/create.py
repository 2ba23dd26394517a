"""Makes the store that the settings name, and says what is wrong with them. Knows every backend, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audiocraft_api.config import Config, ConfigError, variable_name
from audiocraft_api.storage.base import AudioStore
from audiocraft_api.storage.local import LocalStore

if TYPE_CHECKING:
    from audiocraft_api.storage.s3 import S3Store


def create_store(config: Config) -> AudioStore:
    """Return the store that the settings name, asking it nothing yet. Raises ConfigError."""
    return _create_s3(config) if config.storage.backend == "s3" else LocalStore(config)


def check_store(config: Config) -> None:
    """Ask the store, where it is another server, whether the settings are right. Raises ConfigError.

    One that does not answer is only logged: it may come back while this server runs.
    """
    if config.storage.backend == "s3":
        _create_s3(config).check()


def _create_s3(config: Config) -> S3Store:
    if not config.storage.s3_bucket:
        raise ConfigError(f"{variable_name('s3_bucket')} is not set: {variable_name('audio_store')}=s3 needs a bucket")
    if config.storage.max_total_bytes and "max_total_bytes" in config.storage.model_fields_set:
        raise ConfigError(
            f"{variable_name('audio_max_total_bytes')}={config.storage.max_total_bytes} is not kept with "
            f"{variable_name('audio_store')}=s3, whose buckets have no such bound; leave it out or set it to 0"
        )
    from audiocraft_api.storage.s3 import S3Store  # boto3 takes a third of a second to import

    return S3Store(config)
