"""Settings of results: the same question gets the stored answer, and a file says how it was made."""

from __future__ import annotations

from pydantic import Field

from audiocraft_api.config.section import Section


class ResultSettings(Section):
    """Settings of results: the same question gets the stored answer, and a file says how it was made."""

    cache_entries: int = Field(
        0,
        alias="result_cache_entries",
        ge=0,
        le=1_000_000,
        description="Answers that are remembered, so that a request with the same fields and seed gets the stored audio "
        "at once; the least recently used ones go first. 0 remembers none.",
    )
    cache_max_age_seconds: float = Field(
        86_400.0,
        alias="result_cache_max_age_seconds",
        gt=0,
        description="Remember an answer for at most so long, and while its audio file is kept.",
    )
    tag_prompts: bool = Field(
        True, description="Write the prompt into the audio file's tags, with the rest of its recipe."
    )
