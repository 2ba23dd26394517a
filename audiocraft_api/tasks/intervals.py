"""How often the background threads of tasks look for work, retry and report. Shortened in tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskIntervals:
    """Intervals in seconds."""

    heartbeat: float = 0.5  # at most; bounds how late a worker notices a cancellation and a client sees progress
    worker_poll: float = 1.0  # for abandoned tasks and ended pauses; new tasks wake the worker at once
    worker_stop: float = 5.0  # for the worker's threads to release their tasks after the grace period
    engine_pause: float = 1.0  # before a task is tried again when the engine was full or closed
    store_retry: float = 1.0  # between attempts to write a task's outcome during an outage of the store
    expiry: float = 60.0  # between searches for expired tasks
    monitor: float = 1.0  # between counts of the queue
    sweep: float = 2.0  # of Celery workers; an abandoned task runs again within its lease and 5 s
    webhook_poll: float = 1.0  # for newly finished tasks and ended pauses
    webhook_backoff: float = 1.0  # before the second delivery attempt; four times as long before each further one
    webhook_max_backoff: float = 3600.0
    webhook_stop: float = 1.0  # for deliveries in flight; those that are cut off are repeated after a restart


DEFAULT_INTERVALS = TaskIntervals()
