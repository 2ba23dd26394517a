"""Settings of where finished audio lives, for how long, and how it is fetched from there."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from audiocraft_api.config.section import Section


class StorageSettings(Section):
    """Settings of where finished audio lives, for how long, and how it is fetched from there."""

    backend: Literal["local", "s3"] = Field(
        "local",
        alias="audio_store",
        description="Where finished audio is kept: in `audio_dir`, or in a bucket of an S3-compatible store.",
    )
    directory: Path = Field(
        Path("generated_audio"), alias="audio_dir", description="Directory of the finished audio files."
    )
    max_age_seconds: float = Field(
        86_400.0, alias="audio_max_age_seconds", ge=0, description="Delete audio files older than this; 0 keeps them."
    )
    max_total_bytes: int = Field(
        10 * 2**30,
        alias="audio_max_total_bytes",
        ge=0,
        description="Delete the oldest audio files beyond this many bytes; 0 is no limit. Not with `s3`, which has none.",
    )
    sweep_interval_seconds: float = Field(
        60.0,
        alias="audio_sweep_interval_seconds",
        gt=0,
        le=86_400,
        description="Time between two sweeps of the audio files.",
    )

    # S3; the credentials are found where AWS's tools find them
    s3_bucket: str = Field("", pattern=r"^([A-Za-z0-9._-]{3,63})?$", description="Bucket of the audio files.")
    s3_prefix: str = Field(
        "audio/",
        pattern=r"^([A-Za-z0-9!_*'()-][A-Za-z0-9!_.*'()-]*/)*$",
        description="What the keys of the audio files begin with; it ends in `/`, or is empty.",
    )
    s3_endpoint_url: str = Field(
        "", pattern=r"^(https?://[^\s?#]+)?$", description="Address of the S3-compatible store; empty is AWS's own."
    )
    s3_region: str = Field(
        "", pattern=r"^[a-z0-9-]*$", description="Region of the bucket; empty is what AWS's own configuration says."
    )
    s3_delivery: Literal["proxied", "presigned"] = Field(
        "proxied",
        description="Who hands out audio files: this server, or the store, to which `/audio/…` then redirects.",
    )
    s3_link_seconds: int = Field(900, ge=1, le=3600, description="How long a redirect to the store is good for.")
    s3_link_endpoint_url: str = Field(
        "",
        pattern=r"^(https?://[^\s?#]+)?$",
        description="Address of the store in redirects, where clients need another one; empty is `s3_endpoint_url`.",
    )
    s3_sweep: bool = Field(
        True,
        description="Delete what is older than `audio_max_age_seconds` from the bucket; `false` leaves that to a "
        "lifecycle rule of the bucket.",
    )
    s3_connect_timeout_seconds: float = Field(
        3.0, gt=0, le=60, description="Longest wait for a connection to the store."
    )
    s3_read_timeout_seconds: float = Field(
        5.0, gt=0, le=60, description="Longest silence of the store in the middle of a call."
    )
    s3_attempts: int = Field(3, ge=1, le=10, description="How often a call is tried, over errors that may pass.")
    s3_timeout_seconds: float = Field(
        20.0, gt=0, le=600, description="Longest time of a call with all its attempts; then the answer is 503."
    )
