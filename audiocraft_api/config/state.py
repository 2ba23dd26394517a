"""Settings of where the state lives that outlasts a request: in SQLite files of this machine, or in a Redis for all."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from audiocraft_api.config.section import Section


class StateSettings(Section):
    """Settings of where the state lives that outlasts a request: in SQLite files of this machine, or in a Redis for all."""

    backend: Literal["auto", "sqlite", "redis"] = Field(
        "auto",
        alias="state_backend",
        description="What keeps tasks, keys, quotas and known results: files of this machine, or a Redis that all "
        "servers share. `auto` is `redis` with Celery, else `sqlite`.",
    )
    db: Path = Field(
        Path("data/state.sqlite3"),
        alias="state_db",
        description="SQLite file of keys, quotas and known results; on a local disk, never on a network file system.",
    )
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        pattern=r"^(rediss?|unix)://.+$",
        description="Redis of the `redis` state back end; it needs `appendonly yes`.",
    )
