"""Settings of uploads, of conversion and of the finished audio files."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from audiocraft_api.config.section import Section


class AudioSettings(Section):
    """Settings of uploads, of conversion and of the finished audio files."""

    # uploads
    max_json_bytes: int = Field(256 * 2**10, ge=1024, description="Largest JSON body.")
    max_upload_bytes: int = Field(20 * 2**20, ge=1024, description="Largest request body.")
    max_melody_seconds: float = Field(60.0, ge=1, le=600, description="Longest uploaded tune.")
    max_melody_decoders: int = Field(2, ge=1, le=64, description="Uploads decoded at the same time; the others wait.")
    melody_timeout_seconds: float = Field(
        10.0, gt=0, le=600, description="Longest wait for a decoder, and then longest time to decode an uploaded tune."
    )

    # audio files
    convert_timeout_seconds: float = Field(
        60.0, gt=0, le=3600, description="Longest time that ffmpeg may take to encode one file."
    )
    audio_dir: Path = Field(Path("generated_audio"), description="Directory of the finished audio files.")
    audio_max_age_seconds: float = Field(
        86_400.0, ge=0, description="Delete audio files older than this; 0 keeps them."
    )
    audio_max_total_bytes: int = Field(
        10 * 2**30, ge=0, description="Delete the oldest audio files beyond this many bytes; 0 is no limit."
    )
    audio_sweep_interval_seconds: float = Field(
        60.0, gt=0, le=86_400, description="Time between two sweeps of the audio files."
    )
