"""Settings: routes that clients of other services speak."""

from __future__ import annotations

from pydantic import Field

from audiocraft_api.config.section import Section


class CompatSettings(Section):
    """Routes that clients of other services speak."""

    compat_openai: bool = Field(
        True, description="Serve routes in OpenAI's style: `/v1/audio/music`, `generate` and `speech`, `/v1/models`."
    )
    compat_huggingface: bool = Field(
        True, description="Serve routes for Hugging Face's inference clients: `/hf/{model}`, `/models/{owner}/{name}`."
    )
    compat_elevenlabs: bool = Field(
        True, description="Serve ElevenLabs' routes for music, and `/v1/sound-generation` of ElevenLabs and LocalAI."
    )
    compat_replicate: bool = Field(
        True, description="Serve Replicate's routes for predictions, and those of a model that Cog serves."
    )
    compat_max_files: int = Field(
        50,
        ge=0,
        le=10_000,
        description="Files that one key, or all clients without keys, may keep at a time with Replicate's `/v1/files`. "
        "They expire as audio files do. 0: none.",
    )
    compat_lyria: bool = Field(
        True, description="Serve the WebSocket of Google's Lyria RealTime, which plays live sessions."
    )
    compat_model: str = Field(
        "small",
        description="Model for requests on these routes that name no model of this server, but another service's, such "
        "as `music_v1`.",
    )
