"""Settings: uploads and audio conversion."""

from __future__ import annotations

from pydantic import Field

from audiocraft_api.config.section import Section


class AudioSettings(Section):
    """Uploads and audio conversion."""

    max_json_bytes: int = Field(256 * 2**10, ge=1024, description="Maximum size of a JSON request body.")
    max_upload_bytes: int = Field(20 * 2**20, ge=1024, description="Maximum size of any request body.")
    max_melody_seconds: float = Field(60.0, ge=1, le=600, description="Maximum duration of a melody.")
    max_melody_notes: int = Field(
        2_000, ge=1, le=20_000, description="Maximum number of notes in `notes`, and in the top line of a MIDI file."
    )
    max_midi_events: int = Field(100_000, ge=1, le=1_000_000, description="Maximum number of events in a MIDI file.")
    max_continuation_seconds: float = Field(
        300.0, ge=1, le=600, description="Maximum duration of an uploaded recording to continue."
    )
    max_melody_decoders: int = Field(
        2, ge=1, le=64, description="Maximum number of uploads decoded at the same time. Further uploads wait."
    )
    melody_timeout_seconds: float = Field(
        10.0,
        gt=0,
        le=600,
        description="Maximum time that an upload waits for a decoder, and maximum time to decode it.",
    )
    convert_timeout_seconds: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="Maximum time for ffmpeg to encode a file of up to 30 seconds. Longer files get proportionally "
        "more time.",
    )
