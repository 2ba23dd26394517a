"""Settings: where audio files are stored, for how long, and how clients download them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from audiocraft_api.config.section import Section


class StorageSettings(Section):
    """Where audio files are stored, for how long, and how clients download them."""

    backend: Literal["local", "s3"] = Field(
        "local",
        alias="audio_store",
        description="Store audio files in `audio_dir` (`local`) or in a bucket of an S3-compatible service (`s3`).",
    )
    directory: Path = Field(Path("generated_audio"), alias="audio_dir", description="Directory for audio files.")
    max_age_seconds: float = Field(
        86_400.0, alias="audio_max_age_seconds", ge=0, description="Delete audio files older than this. 0: never."
    )
    max_total_bytes: int = Field(
        10 * 2**30,
        alias="audio_max_total_bytes",
        ge=0,
        description="Delete the oldest audio files when all files together exceed this size. 0: no limit. Not "
        "supported with `s3`.",
    )
    sweep_interval_seconds: float = Field(
        60.0,
        alias="audio_sweep_interval_seconds",
        gt=0,
        le=86_400,
        description="Time between two searches for audio files to delete.",
    )

    store_codes: bool = Field(
        True,
        description="Store the codes of each audio file beside it, 18 kB per minute of mono, so that "
        "`continue_from` continues exactly what the model generated. They are deleted with the file. Without them, "
        "the file is encoded again.",
    )

    # S3. Credentials come from AWS's usual sources: variables, profiles, roles.
    s3_bucket: str = Field("", pattern=r"^([A-Za-z0-9._-]{3,63})?$", description="Bucket for audio files.")
    s3_prefix: str = Field(
        "audio/",
        pattern=r"^([A-Za-z0-9!_*'()-][A-Za-z0-9!_.*'()-]*/)*$",
        description="Prefix of the keys of audio files; empty, or ends in `/`.",
    )
    s3_endpoint_url: str = Field(
        "", pattern=r"^(https?://[^\s?#]+)?$", description="Address of the S3-compatible service. Empty: AWS."
    )
    s3_region: str = Field(
        "", pattern=r"^[a-z0-9-]*$", description="Region of the bucket. Empty: from AWS's own configuration."
    )
    s3_delivery: Literal["proxied", "presigned"] = Field(
        "proxied",
        description="`proxied`: this server sends audio files. `presigned`: `/audio/…` redirects to the store.",
    )
    s3_link_seconds: int = Field(900, ge=1, le=3600, description="How long a redirect to the store stays valid.")
    s3_link_endpoint_url: str = Field(
        "",
        pattern=r"^(https?://[^\s?#]+)?$",
        description="Address of the store in redirects, if clients need a different one. Empty: `s3_endpoint_url`.",
    )
    s3_sweep: bool = Field(
        True,
        description="Delete files older than `audio_max_age_seconds` from the bucket. Set `false` if a "
        "lifecycle rule of the bucket does this.",
    )
    s3_connect_timeout_seconds: float = Field(3.0, gt=0, le=60, description="Maximum time to connect to the store.")
    s3_read_timeout_seconds: float = Field(
        5.0, gt=0, le=60, description="Maximum time without data from the store during a call."
    )
    s3_attempts: int = Field(
        3, ge=1, le=10, description="Maximum number of attempts of a call after errors that may be temporary."
    )
    s3_timeout_seconds: float = Field(
        20.0, gt=0, le=600, description="Maximum time for a call with all its attempts; then the request gets 503."
    )
