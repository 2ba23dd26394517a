"""The interface that every task store fills, and what they share. Knows neither engine nor HTTP.

A task that is not final is *held* while a worker's lease runs, or for a pause before its next attempt; else it may be
claimed. Holds are measured by a clock that is the same for all processes of a store and may jump: a hold is over when
it has passed, and also when it ends further ahead than it was ever long, so that no jump and no reboot holds a task
for longer than one lease.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from audiocraft_api.core.errors import IdempotencyConflict
from audiocraft_api.tasks.task import NewTask, QueueStatus, Task

HeartbeatResponse = Literal["held", "canceled", "lost"]  # go on; stop and `cancel`; stop, the task is somebody else's
TOO_MANY_MESSAGE = "{num_tasks} of your tasks are not finished; wait for one of them, or cancel it."
NUM_RECENT_RUNS = 20  # completed tasks that `mean_run_seconds` is taken over


class TaskStore(Protocol):
    """Keeps tasks durably. Thread-safe; opens with its first use. Every method may raise StorageUnavailable.

    A worker shows the `Task` that it claimed. Once that claim has ended, by a final state or a takeover, `complete`,
    `fail`, `cancel` and `release` change nothing and return False: a task gets exactly one final state.
    """

    def submit(self, new: NewTask, *, max_queued: int, max_audio_bytes: int, max_unfinished: int = 0) -> Task:
        """Accept a task; it is on disk when this returns.

        A task of the same owner and idempotency key is returned in its place, even when the queue is full. Raises
        IdempotencyConflict when that one has another fingerprint, and QueueFull when `max_queued` tasks wait or the
        audio of all unfinished tasks would pass `max_audio_bytes`, and TooManyTasks when `max_unfinished` tasks of its
        owner are not finished; 0 is no bound, and no owner has none.
        """

    def get(self, task_id: str) -> Task | None: ...

    def made_by(self, owner: str | None, idempotency_key: str) -> Task | None:
        """Return the task that this key of an owner has made, while it is known."""

    def audio(self, task_id: str) -> bytes | None:
        """Return the packed audio inputs; None when there are none, or not any more."""

    def page(self, owner: str | None, *, before: int | None = None, limit: int = 50) -> list[Task]:
        """Return an owner's tasks, newest first, from under the `number` of the last page's last task."""

    def position(self, task_id: str) -> int | None:
        """Return how many queued tasks were accepted up to and including this one; None when it is not queued.

        With several owners that is an estimate of its place, since `claim` serves them in turn.
        """

    def status(self) -> QueueStatus: ...

    def claim(self, worker_id: str, lease_seconds: float, task_id: str | None = None) -> Task | None:
        """Begin the next task that nobody holds, or this one if nobody holds it; None when there is none.

        Next is the oldest of the owner that has the fewest held by workers, among several of the one whose last claim
        is longest ago, so that no owner waits for another's whole queue. All tasks without owner share one turn.
        The attempt is counted. Tasks found on the way that have no attempt left become failed; those whose cancel
        nobody has carried out become canceled. A task whose last attempt was lost while its worker held others too
        may not be what ended it: it has one attempt more, for which a worker holds nothing else. None while a worker
        would have to, or holds such a task.
        """

    def heartbeat(self, task: Task, num_frames_done: int, num_frames_total: int) -> HeartbeatResponse:
        """Begin the lease anew and write the progress."""

    def complete(self, task: Task, result: dict[str, Any]) -> bool:
        """End with a result; say whether it counts. A task whose cancel was requested becomes canceled instead."""

    def fail(self, task: Task, message: str, code: str) -> bool:
        """End with an error; a task whose cancel was requested becomes canceled instead."""

    def cancel(self, task: Task) -> bool:
        """End a claimed task as canceled."""

    def release(self, task: Task, *, pause_seconds: float = 0.0, count_attempt: bool = False) -> bool:
        """Put a claimed task back into its place in the queue, claimable after a pause.

        The attempt is given back unless `count_attempt`. A task whose cancel was requested becomes canceled instead.
        """

    def request_cancel(self, task_id: str) -> Task | None:
        """Cancel at once what no worker holds, else ask its worker to; a final task stays as it is. None if unknown."""

    def wait_for_change(self, task_id: str, version: int, timeout_seconds: float) -> Task | None:
        """Return the task once its version is over `version`, or as it is after the time-out; None if unknown."""

    def claim_webhook(self, hold_seconds: float, busy_hosts: Collection[str] = ()) -> Task | None:
        """Begin to tell the webhook of a final task that nobody holds, and hold it; None when there is none.

        The attempt is counted. A task with a webhook waits here from its final state until `end_webhook`; those for
        `busy_hosts` are passed over.
        """

    def pause_webhook(self, task: Task, seconds: float) -> None:
        """Let a claimed webhook come again after a pause."""

    def end_webhook(self, task: Task) -> None:
        """Let a webhook come no more: it was told, or given up."""

    def expire(self, finished_before: float) -> list[str]:
        """Forget tasks that finished before a time (seconds since the epoch), and return their audio files' names.

        Names are never lost: a failure after some were forgotten is raised by the next call.
        """

    def close(self) -> None: ...


class ChangeSignal:
    """Wakes the waiters of this process when a task changes; changes by other processes are found by polling."""

    def __init__(self, poll_seconds: float) -> None:
        self._poll_seconds = poll_seconds
        self._condition = threading.Condition()
        self._num_changes = 0

    def notify(self) -> None:
        with self._condition:
            self._num_changes += 1
            self._condition.notify_all()

    def wait_for_change(self, store: TaskStore, task_id: str, version: int, timeout_seconds: float) -> Task | None:
        """Fill `TaskStore.wait_for_change`."""
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
    """Return the names of the audio files that results speak of."""
    return [result["filename"] for result in results if result and "filename" in result]


def host_of(url: str | None) -> str | None:
    """Return the host that a webhook's address names."""
    return urlsplit(url).hostname if url else None


def check_fingerprint(task: Task, new: NewTask) -> Task:
    """Return the task that holds the idempotency key; raise IdempotencyConflict when it is of another request."""
    if task.fingerprint != new.fingerprint:
        raise IdempotencyConflict("This Idempotency-Key came before with another request; use a new one.")
    return task
