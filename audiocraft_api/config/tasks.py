"""Settings: asynchronous tasks: which processes run them, where they are stored, and their limits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from audiocraft_api.config.section import Section


class TaskSettings(Section):
    """Asynchronous tasks: which processes run them, where they are stored, and their limits."""

    backend: Literal["embedded", "celery"] = Field(
        "embedded",
        alias="task_backend",
        description="`embedded`: the server runs tasks itself. `celery`: Celery workers that share a Redis run them.",
    )
    db: Path = Field(
        Path("data/tasks.sqlite3"),
        alias="task_db",
        description="SQLite file for tasks. It must be on a local disk, not on a network file system.",
    )
    broker_url: str = Field(
        "",
        pattern=r"^((amqps?|rediss?|redis\+socket|sentinel)://.+)?$",
        description="Message broker for Celery: RabbitMQ (`amqp://…`) or Redis. Empty: `redis_url`.",
    )
    max_queued: int = Field(
        100,
        alias="max_queued_tasks",
        ge=1,
        le=100_000,
        description="Maximum number of tasks waiting in the queue. Further tasks get 503.",
    )
    max_queued_melody_bytes: int = Field(
        512 * 2**20,
        ge=2**20,
        description="Maximum total size of the decoded melodies of unfinished tasks. Further tasks with a "
        "melody get 503.",
    )
    concurrency: int = Field(
        0,
        alias="task_concurrency",
        ge=0,
        le=256,
        description="Number of tasks run at the same time. 0: `max_batch_requests`.",
    )
    attempts: int = Field(
        2,
        alias="task_attempts",
        ge=1,
        le=10,
        description="Maximum number of attempts of a task after crashes and temporary errors; then it fails.",
    )
    lease_seconds: float = Field(
        15.0,
        alias="task_lease_seconds",
        ge=1,
        le=3600,
        description="A worker that does not renew its lease on a task for this long loses the task to another worker.",
    )
    deadline_seconds: float = Field(
        3600.0,
        alias="task_deadline_seconds",
        gt=0,
        le=86_400,
        description="Maximum time for one attempt of a task that generates up to 30 seconds of audio; then the task "
        "fails. Longer audio gets proportionally more time.",
    )
    max_age_seconds: float = Field(
        86_400.0,
        alias="task_max_age_seconds",
        ge=0,
        description="Delete finished tasks and their audio when they are older than this. 0: never.",
    )
    event_heartbeat_seconds: float = Field(
        15.0, ge=0.1, le=300, description="Time between the comments that keep an idle event stream open."
    )
