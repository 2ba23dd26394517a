"""Short intervals for the background threads of tasks, so that tests do not wait for them."""

from __future__ import annotations

from audiocraft_api.tasks.intervals import TaskIntervals

FAST_INTERVALS = TaskIntervals(
    heartbeat=0.05,
    worker_poll=0.05,
    engine_pause=0.01,
    store_retry=0.01,
    expiry=0.05,
    monitor=0.05,
    sweep=0.1,
    webhook_poll=0.02,
    webhook_backoff=0.02,
    webhook_max_backoff=0.1,
)
