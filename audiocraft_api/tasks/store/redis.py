"""The task store that several hosts share: a Redis server. Each change is one Lua script, so one atomic step.

The promise that an accepted task is on disk is Redis's (`state.redis_client`). Holds are measured by its clock.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection
from typing import Any

from audiocraft_api.core.errors import QueueFull, StorageUnavailable, TooManyTasks
from audiocraft_api.state.redis import PREFIX, RedisClient
from audiocraft_api.tasks.store import redis_scripts as scripts
from audiocraft_api.tasks.store.base import (
    NUM_RECENT_RUNS,
    TOO_MANY_MESSAGE,
    ChangeSignal,
    HeartbeatResponse,
    audio_filenames,
    check_fingerprint,
    host_of,
)
from audiocraft_api.tasks.task import INTERRUPTED_CODE, INTERRUPTED_MESSAGE, NewTask, QueueStatus, State, Task

POLL_SECONDS = 0.25  # for changes by other processes; those of this one wake their waiters at once
EXPIRE_BATCH = 500  # tasks forgotten by one script, since Redis serves nobody else meanwhile


class RedisTaskStore:
    """A `TaskStore` in Redis, under keys that begin with `prefix`. `clock` stands in for the server's in tests."""

    def __init__(
        self,
        url: str,
        *,
        max_attempts: int,
        prefix: str = PREFIX,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._client = RedisClient(url, "task store")
        self._max_attempts = max_attempts
        self._prefix = prefix
        self._clock = clock
        self._signal = ChangeSignal(POLL_SECONDS)

    # --- clients

    def submit(self, new: NewTask, *, max_queued: int, max_audio_bytes: int, max_unfinished: int = 0) -> Task:
        optional = {
            "owner": new.owner,
            "idempotency_key": new.idempotency_key,
            "fingerprint": new.fingerprint,
            "webhook_url": new.webhook_url,
            "webhook_host": host_of(new.webhook_url),
        }
        row: list[Any] = ["command", json.dumps(new.command)]
        for name, value in optional.items():
            row += [name, value] if value is not None else []
        outcome, answer = self._run(
            scripts.SUBMIT,
            new.id,
            max_queued,
            max_audio_bytes,
            max_unfinished,
            new.audio or b"",
            new.owner or "",
            new.idempotency_key or "",
            *row,
        )
        if outcome == b"too many":
            raise TooManyTasks(TOO_MANY_MESSAGE.format(num_tasks=answer))
        if outcome == b"full":
            raise QueueFull(f"{answer} tasks are waiting already; try again later.")
        if outcome == b"full of audio":
            raise QueueFull("The waiting tasks hold as many tunes as there is room for; try again later.")
        task = _task(_pairs(answer))
        return check_fingerprint(task, new) if outcome == b"twin" else task

    def get(self, task_id: str) -> Task | None:
        with self._client.commands() as client:
            return _found(client.hgetall(self._prefix + "task:" + task_id))

    def made_by(self, owner: str | None, idempotency_key: str) -> Task | None:
        return _found(_pairs(self._run(scripts.MADE_BY, owner or "", idempotency_key)))

    def audio(self, task_id: str) -> bytes | None:
        with self._client.commands() as client:
            audio: bytes | None = client.get(self._prefix + "audio:" + task_id)
        return audio

    def page(self, owner: str | None, *, before: int | None = None, limit: int = 50) -> list[Task]:
        newest = "+inf" if before is None else f"({before}"
        with self._client.commands() as client:
            ids = client.zrevrangebyscore(self._prefix + "owned:" + (owner or ""), newest, "-inf", start=0, num=limit)
            pipeline = client.pipeline(transaction=False)
            for task_id in ids:
                pipeline.hgetall(self._prefix + "task:" + task_id.decode())
            rows = pipeline.execute()
        return [_task(row) for row in rows if row]

    def position(self, task_id: str) -> int | None:
        with self._client.commands() as client:
            rank = client.zrank(self._prefix + "queued", task_id)
        return None if rank is None else int(rank) + 1

    def status(self) -> QueueStatus:
        with self._client.commands() as client:
            pipeline = client.pipeline()
            pipeline.zcard(self._prefix + "queued")
            pipeline.zcard(self._prefix + "unfinished")
            pipeline.lrange(self._prefix + "run_seconds", 0, -1)
            num_queued, num_unfinished, run_seconds = pipeline.execute()
        mean = sum(float(seconds) for seconds in run_seconds) / len(run_seconds) if run_seconds else None
        return QueueStatus(num_queued, num_unfinished - num_queued, mean)

    def request_cancel(self, task_id: str) -> Task | None:
        return _found(_pairs(self._run(scripts.REQUEST_CANCEL, task_id)))

    def wait_for_change(self, task_id: str, version: int, timeout_seconds: float) -> Task | None:
        return self._signal.wait_for_change(self, task_id, version, timeout_seconds)

    # --- workers

    def claim(self, worker_id: str, lease_seconds: float, task_id: str | None = None) -> Task | None:
        lease = f"{worker_id}/{secrets.token_hex(8)}"
        limits = (self._max_attempts, INTERRUPTED_CODE, INTERRUPTED_MESSAGE)
        return _found(_pairs(self._run(scripts.CLAIM, lease, lease_seconds, task_id or "", *limits)))

    def num_unheld(self, limit: int) -> int:
        """Return how many of the oldest `limit` unfinished tasks could be claimed now."""
        return int(self._run(scripts.NUM_UNHELD, limit))

    def heartbeat(self, task: Task, num_frames_done: int, num_frames_total: int) -> HeartbeatResponse:
        answer: HeartbeatResponse = self._run(
            scripts.HEARTBEAT, task.id, task.lease, num_frames_done, num_frames_total
        ).decode()
        return answer

    def complete(self, task: Task, result: dict[str, Any]) -> bool:
        return self._finish(task, "completed", "result", json.dumps(result)) == "completed"

    def fail(self, task: Task, message: str, code: str) -> bool:
        return bool(self._finish(task, "failed", "error", message, "error_code", code))

    def cancel(self, task: Task) -> bool:
        return bool(self._finish(task, "canceled"))

    def release(self, task: Task, *, pause_seconds: float = 0.0, count_attempt: bool = False) -> bool:
        return bool(self._run(scripts.RELEASE, task.id, task.lease, pause_seconds, 0 if count_attempt else 1))

    # --- webhooks

    def claim_webhook(self, hold_seconds: float, busy_hosts: Collection[str] = ()) -> Task | None:
        return _found(_pairs(self._run(scripts.CLAIM_WEBHOOK, hold_seconds, *busy_hosts)))

    def pause_webhook(self, task: Task, seconds: float) -> None:
        self._run(scripts.PAUSE_WEBHOOK, task.id, seconds)

    def end_webhook(self, task: Task) -> None:
        with self._client.commands() as client:
            client.zrem(self._prefix + "webhooks", task.id)

    # --- upkeep

    def expire(self, finished_before: float) -> list[str]:
        filenames: list[str] = []
        while True:
            try:
                results = self._run(scripts.EXPIRE, finished_before, EXPIRE_BATCH)
            except StorageUnavailable:
                if filenames:
                    return filenames
                raise
            filenames += audio_filenames(json.loads(result) for result in results if result)
            if len(results) < EXPIRE_BATCH:
                return filenames

    def close(self) -> None:
        self._client.close()

    # --- inside

    def _finish(self, task: Task, state: State, *outcome: str) -> str:
        """End a claimed task; return the state that it got, "" when the claim has ended."""
        answer: bytes = self._run(scripts.FINISH, task.id, task.lease, state, NUM_RECENT_RUNS, *outcome)
        return answer.decode()

    def _run(self, script: str, *arguments: Any) -> Any:
        """Run a script after the prelude. Raises StorageUnavailable."""
        now = "" if self._clock is None else repr(self._clock())
        answer = self._client.run(scripts.PRELUDE + script, [self._prefix], [now, *arguments])
        if script != scripts.SUBMIT:  # nobody waits for the change of a task that is new
            self._signal.notify()
        return answer


def _pairs(answer: list[bytes]) -> dict[bytes, bytes]:
    """Return the flat answer of HGETALL inside a script as the row that it is."""
    return dict(zip(answer[::2], answer[1::2], strict=True))


def _found(row: dict[bytes, bytes]) -> Task | None:
    return _task(row) if row else None


def _task(row: dict[bytes, bytes]) -> Task:
    values = {name.decode(): value.decode() for name, value in row.items()}
    return Task(
        id=values["id"],
        number=int(values["number"]),
        version=int(values["version"]),
        state=values["state"],  # type: ignore[arg-type]
        command=json.loads(values["command"]),
        owner=values.get("owner"),
        created=float(values["created"]),
        updated=float(values["updated"]),
        started=float(values["started"]) if "started" in values else None,
        finished=float(values["finished"]) if "finished" in values else None,
        attempts=int(values.get("attempts", 0)),
        num_frames_done=int(values.get("num_frames_done", 0)),
        num_frames_total=int(values.get("num_frames_total", 0)),
        result=json.loads(values["result"]) if "result" in values else None,
        error=values.get("error"),
        error_code=values.get("error_code"),
        idempotency_key=values.get("idempotency_key"),
        fingerprint=values.get("fingerprint"),
        webhook_url=values.get("webhook_url"),
        webhook_attempts=int(values.get("webhook_attempts", 0)),
        cancel_requested=values.get("cancel_requested") == "1",
        lease=values.get("lease"),
    )
