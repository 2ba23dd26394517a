"""The interface that every task store implements, and the helpers that the stores share. Knows no engine and no HTTP.

**Leases.** `claim` gives a task to a worker for `lease_seconds`; each heartbeat renews the lease. `release` with a
pause delays the next attempt in the same way. Until either ends (`held_until`), the task is not claimable. A webhook
that is being delivered, or that waits for its next attempt, is leased and delayed like a task.

**Clocks.** One clock, common to all processes of a store, times the leases. That clock may jump. A lease therefore
also ends when `held_until` lies further in the future than the lease ever was long: neither a jump nor a reboot can
block a task for longer than one lease.

**Attempts.** Each claim counts as one attempt, and a task fails after `max_attempts` of them. If a worker dies while
it runs several tasks, the store cannot know which task killed the worker. A task whose last attempt was lost
alongside other tasks (`ran_with_others`) therefore gets one extra attempt, alone on its worker.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from audiocraft_api.core.errors import IdempotencyConflict, QueueFull, TooManyTasks
from audiocraft_api.tasks.task import NewTask, QueueStatus, Task

# `leased`: keep running. `canceled`: stop, then call `cancel`. `lost`: stop; the lease ended and the task is not ours.
HeartbeatStatus = Literal["leased", "canceled", "lost"]
NUM_RECENT_RUNS = 20  # completed tasks that `mean_run_seconds` averages


class TaskStore(Protocol):
    """Stores tasks durably. Thread-safe; connects on first use. Every method may raise StorageUnavailable.

    A worker passes the `Task` that `claim` returned. Once the lease of that claim has ended, because the task is final
    or because another worker claimed it, `complete`, `fail`, `cancel` and `release` change nothing and return False.
    A task reaches exactly one final state.
    """

    def submit(self, new: NewTask, *, max_queued: int, max_audio_bytes: int, max_unfinished: int = 0) -> Task:
        """Accept a task. The task is on disk when this method returns.

        If the owner already has a task with this idempotency key, return that task, even when the queue is full.

        Raises:
            IdempotencyConflict: That task was made from a different request.
            QueueFull: `max_queued` tasks are queued, or the audio of all unfinished tasks would exceed
                `max_audio_bytes`.
            TooManyTasks: The owner has `max_unfinished` unfinished tasks. 0 means no limit; tasks without an owner
                have none.
        """

    def get(self, task_id: str) -> Task | None:
        """Return a task; None if it is unknown or expired."""

    def find_by_key(self, owner: str | None, idempotency_key: str) -> Task | None:
        """Return the task that an owner submitted with this idempotency key; None if there is none."""

    def audio(self, task_id: str) -> bytes | None:
        """Return the packed audio inputs of an unfinished task; None if it has none or has finished."""

    def page(self, owner: str | None, *, before: int | None = None, limit: int = 50) -> list[Task]:
        """Return up to `limit` of an owner's tasks, newest first, with a `number` below `before`."""

    def position(self, task_id: str) -> int | None:
        """Return the place of a queued task by order of acceptance, from 1; None if the task is not queued.

        With several owners this only estimates when the task runs, because `claim` alternates between owners.
        """

    def status(self) -> QueueStatus:
        """Return how many tasks are queued and running, and how long recent ones took."""

    def claim(self, worker_id: str, lease_seconds: float, task_id: str | None = None) -> Task | None:
        """Lease the next claimable task to a worker and count the attempt; None if there is none.

        With `task_id`, lease this task if it is claimable. Otherwise use fair queueing: choose the owner with the
        fewest leased tasks (ties: the owner whose last claim is the oldest), then that owner's oldest claimable task.
        Tasks without an owner count as one owner's.

        Claimable tasks that have no attempt left become failed, and those whose cancellation was requested become
        canceled, before the search continues. While a worker runs a task that must run alone, it gets no other; while
        it runs any task, a task that must run alone is not leased to it, and the result is None.
        """

    def heartbeat(self, task: Task, num_frames_done: int, num_frames_total: int) -> HeartbeatStatus:
        """Renew the lease and store the progress."""

    def complete(self, task: Task, result: dict[str, Any]) -> bool:
        """Finish a task with a result; return whether it was stored.

        A task whose cancellation was requested becomes canceled instead; the result is dropped and False returned.
        """

    def fail(self, task: Task, message: str, code: str) -> bool:
        """Finish a task with an error. A task whose cancellation was requested becomes canceled instead."""

    def cancel(self, task: Task) -> bool:
        """Finish a leased task as canceled."""

    def release(self, task: Task, *, pause_seconds: float = 0.0, count_attempt: bool = False) -> bool:
        """Return a leased task to its place in the queue; it is claimable again after `pause_seconds`.

        The attempt does not count unless `count_attempt` is set. A task whose cancellation was requested becomes
        canceled instead.
        """

    def request_cancel(self, task_id: str) -> Task | None:
        """Cancel a queued or abandoned task at once; ask the worker of a leased task to stop. None if unknown.

        A final task stays as it is.
        """

    def wait_for_change(self, task_id: str, version: int, timeout_seconds: float) -> Task | None:
        """Block until the task's version exceeds `version` or the timeout ends; return the task, None if unknown."""

    def claim_webhook(self, lease_seconds: float, busy_hosts: Collection[str] = ()) -> Task | None:
        """Lease a final task whose webhook is due and count the delivery attempt; None if there is none.

        A webhook is pending from the task's final state until `end_webhook`. Webhooks to `busy_hosts` are skipped.
        """

    def pause_webhook(self, task: Task, seconds: float) -> None:
        """Delay the next delivery attempt of a leased webhook."""

    def end_webhook(self, task: Task) -> None:
        """Stop delivering a webhook: it was delivered, or its attempts are used up."""

    def expire(self, finished_before: float) -> list[str]:
        """Delete tasks that finished before a time (seconds since the epoch) and return the names of their audio files.

        No name is lost: if the store fails after some tasks were deleted, this call returns their files, and the next
        call raises.
        """

    def close(self) -> None:
        """Close the connections. Later calls may raise StorageUnavailable."""


class ChangeSignal:
    """Wakes this process's waiters when it changes a task. Changes by other processes are found by polling."""

    def __init__(self, poll_seconds: float) -> None:
        self._poll_seconds = poll_seconds
        self._condition = threading.Condition()
        self._num_changes = 0

    def notify(self) -> None:
        with self._condition:
            self._num_changes += 1
            self._condition.notify_all()

    def wait_for_change(self, store: TaskStore, task_id: str, version: int, timeout_seconds: float) -> Task | None:
        """Implement `TaskStore.wait_for_change`."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            num_changes = self._num_changes
            task = store.get(task_id)
            remaining = deadline - time.monotonic()
            if task is None or task.version > version or remaining <= 0:
                return task
            with self._condition:
                if self._num_changes == num_changes:
                    self._condition.wait(min(remaining, self._poll_seconds))


def audio_filenames(results: Iterable[dict[str, Any] | None]) -> list[str]:
    """Return the names of the audio files in task results."""
    parts = [part for result in results if result for part in result.get("variations") or [result]]
    return [
        name for part in parts if "filename" in part for name in (part["filename"], *part.get("stems", {}).values())
    ]


def host_of(url: str | None) -> str | None:
    """Return the host of a webhook URL."""
    return urlsplit(url).hostname if url else None


def check_fingerprint(task: Task, new: NewTask) -> Task:
    """Return the task that already has the idempotency key. Raises IdempotencyConflict if the request differs."""
    if task.fingerprint != new.fingerprint:
        raise IdempotencyConflict(
            "This Idempotency-Key was already used with a different request. Use a new key for a new request."
        )
    return task


def queue_full(num_queued: int) -> QueueFull:
    """Return the error for a full queue."""
    return QueueFull(f"The queue is full: {num_queued} tasks are waiting. Try again later.")


def audio_full() -> QueueFull:
    """Return the error for a task whose audio inputs exceed the space for them."""
    return QueueFull("Unfinished tasks use all the space for uploaded melodies. Try again later.")


def too_many_tasks(num_unfinished: int) -> TooManyTasks:
    """Return the error for an owner who has as many unfinished tasks as allowed."""
    return TooManyTasks(f"You already have {num_unfinished} unfinished tasks. Wait for one to finish, or cancel one.")
