"""Settings: the engine that generates audio."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from audiocraft_api.config.section import Section


class EngineSettings(Section):
    """The engine that generates audio."""

    kind: Literal["batching", "plain"] = Field(
        "batching",
        alias="engine",
        description="`batching` decodes many requests together; `plain` runs audiocraft's own loop, one "
        "request at a time.",
    )
    precision: Literal["auto", "exact", "fp16", "bf16", "int8", "int6"] = Field(
        "auto", description="Arithmetic of the batching engine. `exact` reproduces audiocraft's own tokens on the CPU."
    )
    max_waiting: int = Field(
        32, ge=1, le=100_000, description="Maximum number of requests waiting for the engine. Further requests get 503."
    )
    max_batch_requests: int = Field(8, ge=1, le=256, description="Maximum number of requests decoded together.")
    kv_cache_bytes: int = Field(
        0,
        ge=0,
        description="Memory for attention keys and values. 0: enough for `max_batch_requests` requests of 30 seconds.",
    )
    condition_cache_entries: int = Field(
        64, ge=0, le=10_000, description="Number of encoded prompts cached for each model."
    )
    request_deadline_seconds: float = Field(
        600.0,
        gt=0,
        le=86_400,
        description="Maximum time for a synchronous request; then it gets 504. Streams have the same time, and "
        "proportionally more for more than 30 seconds of audio.",
    )
