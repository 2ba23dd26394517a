"""Settings: the result cache, and what audio files say about how they were made."""

from __future__ import annotations

from pydantic import Field

from audiocraft_api.config.section import Section


class ResultSettings(Section):
    """The result cache, and what audio files say about how they were made."""

    cache_entries: int = Field(
        0,
        alias="result_cache_entries",
        ge=0,
        le=1_000_000,
        description="Maximum number of cached results. A request with the same fields and seed as a cached "
        "result gets the stored audio. The least recently used results are removed first. 0: no "
        "cache.",
    )
    cache_max_age_seconds: float = Field(
        86_400.0,
        alias="result_cache_max_age_seconds",
        gt=0,
        description="Maximum age of a cached result. A result is removed earlier if its audio file is deleted.",
    )
    tag_prompts: bool = Field(
        True, description="Include the prompt in the tags of audio files, with the rest of the recipe."
    )
