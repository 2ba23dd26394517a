"""A task: the record that a client polls, from acceptance to exactly one final state. Knows no store and no engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

State = Literal["queued", "processing", "completed", "failed", "canceled"]
FINAL_STATES: frozenset[State] = frozenset({"completed", "failed", "canceled"})

INTERRUPTED_CODE = "task_interrupted"
INTERRUPTED_MESSAGE = "The task was interrupted in each of its {attempts} attempts and will not be tried again."


@dataclass(frozen=True, eq=False)
class NewTask:
    """A task to be accepted. The caller chooses its `id`, so that submitting it twice creates one task."""

    id: str
    command: dict[str, Any]  # as `tasks.command` encodes it
    audio: bytes | None = None  # the command's audio inputs, encoded; kept until the task is final
    owner: str | None = None  # id of the caller's key; None where no keys are configured
    idempotency_key: str | None = None
    fingerprint: str | None = None  # of the request that the idempotency key belongs to
    webhook_url: str | None = None


@dataclass(frozen=True, eq=False)
class Task:
    """A stored task. Times are seconds since the epoch."""

    id: str
    number: int  # rises with acceptance: the order of the queue, and the cursor of pages
    version: int  # rises with every change
    state: State
    command: dict[str, Any]  # as `tasks.command` encodes it
    owner: str | None
    created: float
    updated: float
    started: float | None  # of the last attempt
    finished: float | None
    attempts: int  # started, without those that a stopping worker released; the one beyond the limit runs alone
    num_frames_done: int
    num_frames_total: int  # 0 until the engine has started
    result: dict[str, Any] | None  # as clients see it; of a completed task only
    error: str | None  # a sentence
    error_code: str | None
    idempotency_key: str | None
    fingerprint: str | None
    webhook_url: str | None
    webhook_attempts: int  # to deliver the webhook
    cancel_requested: bool
    lease: str | None  # identifies one claim by one worker, who may write the task while this is unchanged

    @property
    def is_final(self) -> bool:
        return self.state in FINAL_STATES

    @property
    def model(self) -> str:
        """Return the name of the model that the command asks for."""
        return str(self.command["model"])

    @property
    def seed(self) -> int:
        return int(self.command["seed"])

    @property
    def filename(self) -> str | None:
        """Return the name of the audio file; None unless the task is completed."""
        return None if self.result is None else self.result.get("filename")


@dataclass(frozen=True)
class QueueStatus:
    """Counts of unfinished tasks. `mean_run_seconds` averages the last completed tasks; None before the first."""

    num_queued: int
    num_processing: int
    mean_run_seconds: float | None
