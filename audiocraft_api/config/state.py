"""Settings: where API keys, quotas, tasks and cached results are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from audiocraft_api.config.section import Section


class StateSettings(Section):
    """Where API keys, quotas, tasks and cached results are stored: SQLite files on this machine, or a shared Redis."""

    backend: Literal["auto", "sqlite", "redis"] = Field(
        "auto",
        alias="state_backend",
        description="Store for tasks, keys, quotas and cached results: SQLite files on this machine, or a "
        "Redis that all servers share. `auto`: `redis` with Celery, otherwise `sqlite`.",
    )
    db: Path = Field(
        Path("data/state.sqlite3"),
        alias="state_db",
        description="SQLite file for keys, quotas and cached results. It must be on a local disk, not on a "
        "network file system.",
    )
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        pattern=r"^(rediss?|unix)://.+$",
        description="Redis for the `redis` state backend. Configure it with `appendonly yes`.",
    )
