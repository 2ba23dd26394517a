"""Settings of uploads and of conversion."""

from __future__ import annotations

from pydantic import Field

from audiocraft_api.config.section import Section


class AudioSettings(Section):
    """Settings of uploads and of conversion."""

    max_json_bytes: int = Field(256 * 2**10, ge=1024, description="Largest JSON body.")
    max_upload_bytes: int = Field(20 * 2**20, ge=1024, description="Largest request body.")
    max_melody_seconds: float = Field(60.0, ge=1, le=600, description="Longest uploaded tune.")
    max_melody_decoders: int = Field(2, ge=1, le=64, description="Uploads decoded at the same time; the others wait.")
    melody_timeout_seconds: float = Field(
        10.0, gt=0, le=600, description="Longest wait for a decoder, and then longest time to decode an uploaded tune."
    )
    convert_timeout_seconds: float = Field(
        60.0, gt=0, le=3600, description="Longest time that ffmpeg may take to encode one file."
    )
