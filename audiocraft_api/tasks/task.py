"""One task: the row that a client polls, from acceptance to exactly one final state. Knows no store and no engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

State = Literal["queued", "processing", "completed", "failed", "canceled"]
FINAL_STATES: frozenset[State] = frozenset({"completed", "failed", "canceled"})

INTERRUPTED_CODE = "task_interrupted"
INTERRUPTED_MESSAGE = "The task was interrupted in each of its {attempts} attempts and was given up."


@dataclass(frozen=True, eq=False)
class NewTask:
    """A task that asks to be accepted. The caller makes its `id`: a repeated submit then makes no second task."""

    id: str
    command: dict[str, Any]  # JSON
    audio: bytes | None = None  # the command's audio inputs, packed; kept until the final state
    owner: str | None = None  # id of the caller's key; None where no keys are configured
    idempotency_key: str | None = None
    fingerprint: str | None = None  # of the request that the idempotency key stands for
    webhook_url: str | None = None


@dataclass(frozen=True, eq=False)
class Task:
    """A task as a store keeps it. Timings are seconds since the epoch."""

    id: str
    number: int  # rises with acceptance: the order of the queue, and the cursor of pages
    version: int  # rises with every change
    state: State
    command: dict[str, Any]
    owner: str | None
    created: float
    updated: float
    started: float | None  # of the last attempt
    finished: float | None
    attempts: int  # begun, but for those that a stopping worker gave back; one over the limit runs alone
    num_frames_done: int
    num_frames_total: int  # 0 until the engine has begun
    result: dict[str, Any] | None
    error: str | None  # a sentence
    error_code: str | None
    idempotency_key: str | None
    fingerprint: str | None
    webhook_url: str | None
    webhook_attempts: int  # to tell the webhook of the final state
    cancel_requested: bool
    lease: str | None  # names one claim by one worker; whoever shows it may write the task

    @property
    def is_final(self) -> bool:
        return self.state in FINAL_STATES


@dataclass(frozen=True)
class QueueStatus:
    """The tasks that are not final. `mean_run_seconds` is of the last completed ones, None before the first."""

    num_queued: int
    num_processing: int
    mean_run_seconds: float | None
