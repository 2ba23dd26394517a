"""Settings of the decode engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from audiocraft_api.config.section import Section


class EngineSettings(Section):
    """Settings of the decode engine."""

    kind: Literal["batching", "plain"] = Field(
        "batching",
        alias="engine",
        description="Decode engine: many requests in one loop, or audiocraft's own loop one at a time.",
    )
    precision: Literal["auto", "exact", "fp16", "bf16", "int8", "int6"] = Field(
        "auto", description="Arithmetic of the batching engine; `exact` gives audiocraft's own tokens on the CPU."
    )
    max_waiting: int = Field(
        32, ge=1, le=100_000, description="Requests that may wait for the engine; over it the answer is 503."
    )
    max_batch_requests: int = Field(8, ge=1, le=256, description="Requests decoded in one step.")
    kv_cache_bytes: int = Field(
        0, ge=0, description="Memory for keys and values; 0 is room for `max_batch_requests` whole requests."
    )
    condition_cache_entries: int = Field(
        64, ge=0, le=10_000, description="Descriptions whose encoded text is kept for each model."
    )
    request_deadline_seconds: float = Field(
        600.0, gt=0, le=86_400, description="A synchronous request that takes longer is answered with 504."
    )
