"""Settings of tasks: who works them, where they are kept, their bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from audiocraft_api.config.section import Section


class TaskSettings(Section):
    """Settings of tasks: who works them, where they are kept, their bounds."""

    backend: Literal["embedded", "celery"] = Field(
        "embedded",
        alias="task_backend",
        description="Who works the tasks: this server itself, or Celery workers that share a Redis.",
    )
    db: Path = Field(
        Path("data/tasks.sqlite3"),
        alias="task_db",
        description="SQLite file of the embedded tasks; on a local disk, never on a network file system.",
    )
    broker_url: str = Field(
        "",
        pattern=r"^((amqps?|rediss?|redis\+socket|sentinel)://.+)?$",
        description="Broker of the Celery back end, a RabbitMQ (`amqp://…`) or a Redis; empty is `redis_url`.",
    )
    max_queued: int = Field(
        100,
        alias="max_queued_tasks",
        ge=1,
        le=100_000,
        description="Tasks that may wait to be worked; over it the answer is 503.",
    )
    max_queued_melody_bytes: int = Field(
        512 * 2**20, ge=2**20, description="Decoded tunes of unfinished tasks, together; over it the answer is 503."
    )
    concurrency: int = Field(
        0,
        alias="task_concurrency",
        ge=0,
        le=256,
        description="Tasks worked at the same time; 0 is `max_batch_requests`.",
    )
    attempts: int = Field(
        2,
        alias="task_attempts",
        ge=1,
        le=10,
        description="How often a task is begun, over crashes and lacks, before it counts as failed.",
    )
    lease_seconds: float = Field(
        15.0,
        alias="task_lease_seconds",
        ge=1,
        le=3600,
        description="A worker that is silent for so long has lost its task to the others.",
    )
    deadline_seconds: float = Field(
        3600.0,
        alias="task_deadline_seconds",
        gt=0,
        le=86_400,
        description="An attempt at a task that takes longer fails the task.",
    )
    max_age_seconds: float = Field(
        86_400.0,
        alias="task_max_age_seconds",
        ge=0,
        description="Delete finished tasks and their audio when they are older; 0 keeps them.",
    )
    event_heartbeat_seconds: float = Field(
        15.0, ge=0.1, le=300, description="A stream of events that has nothing to tell sends a comment this often."
    )
