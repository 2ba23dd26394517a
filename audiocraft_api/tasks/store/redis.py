"""The task store that several hosts share: a Redis server. Each change is one Lua script and therefore atomic.

Whether an accepted task is on disk depends on the Redis configuration (see `state.redis`). The server's clock times
the leases.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection
from typing import Any, cast

from audiocraft_api.core.errors import StorageUnavailable
from audiocraft_api.state.redis import PREFIX, RedisClient
from audiocraft_api.tasks.store import redis_scripts as scripts
from audiocraft_api.tasks.store.base import (
    NUM_RECENT_RUNS,
    ChangeSignal,
    HeartbeatStatus,
    audio_filenames,
    audio_full,
    check_fingerprint,
    host_of,
    queue_full,
    too_many_tasks,
)
from audiocraft_api.tasks.store.redis_claim import CLAIM
from audiocraft_api.tasks.task import INTERRUPTED_CODE, INTERRUPTED_MESSAGE, NewTask, QueueStatus, State, Task


class RedisTaskStore:
    """A `TaskStore` in Redis, under keys that begin with `prefix`.

    `clock` replaces the server's clock in tests. `poll_seconds` bounds how late a waiter notices a change by another
    process. `expire_batch` is the number of tasks deleted by one script; small, because Redis executes nothing else
    during a script.
    """

    def __init__(
        self,
        url: str,
        *,
        max_attempts: int,
        prefix: str = PREFIX,
        clock: Callable[[], float] | None = None,
        poll_seconds: float = 0.25,
        expire_batch: int = 500,
        on_unavailable: Callable[[], None] | None = None,
    ) -> None:
        self._client = RedisClient(url, "task store", on_unavailable=on_unavailable)
        self._max_attempts = max_attempts
        self._prefix = prefix
        self._clock = clock
        self._signal = ChangeSignal(poll_seconds)
        self._expire_batch = expire_batch

    # --- clients

    def submit(self, new: NewTask, *, max_queued: int, max_audio_bytes: int, max_unfinished: int = 0) -> Task:
        optional = {
            "owner": new.owner,
            "idempotency_key": new.idempotency_key,
            "fingerprint": new.fingerprint,
            "webhook_url": new.webhook_url,
            "webhook_host": host_of(new.webhook_url),
        }
        fields: list[Any] = ["command", json.dumps(new.command)]
        for name, value in optional.items():
            fields += [name, value] if value is not None else []
        outcome, details = self._run(
            scripts.SUBMIT,
            new.id,
            max_queued,
            max_audio_bytes,
            max_unfinished,
            new.audio or b"",
            new.owner or "",
            new.idempotency_key or "",
            *fields,
        )
        if outcome == b"too many":
            raise too_many_tasks(details)
        if outcome == b"full":
            raise queue_full(details)
        if outcome == b"full of audio":
            raise audio_full()
        task = _task(_pairs(details))
        return check_fingerprint(task, new) if outcome == b"duplicate" else task

    def get(self, task_id: str) -> Task | None:
        with self._client.commands() as client:
            return _task_or_none(client.hgetall(self._prefix + "task:" + task_id))

    def find_by_key(self, owner: str | None, idempotency_key: str) -> Task | None:
        return _task_or_none(_pairs(self._run(scripts.FIND_BY_KEY, owner or "", idempotency_key)))

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
        return _task_or_none(_pairs(self._run(scripts.REQUEST_CANCEL, task_id)))

    def wait_for_change(self, task_id: str, version: int, timeout_seconds: float) -> Task | None:
        return self._signal.wait_for_change(self, task_id, version, timeout_seconds)

    # --- workers

    def claim(self, worker_id: str, lease_seconds: float, task_id: str | None = None) -> Task | None:
        lease = f"{worker_id}/{secrets.token_hex(8)}"
        limits = (self._max_attempts, INTERRUPTED_CODE, INTERRUPTED_MESSAGE)
        return _task_or_none(_pairs(self._run(CLAIM, lease, lease_seconds, task_id or "", *limits)))

    def num_claimable(self, limit: int) -> int:
        """Return how many of the oldest `limit` unfinished tasks are claimable now."""
        return int(self._run(scripts.NUM_CLAIMABLE, limit))

    def heartbeat(self, task: Task, num_frames_done: int, num_frames_total: int) -> HeartbeatStatus:
        status: bytes = self._run(scripts.HEARTBEAT, task.id, task.lease, num_frames_done, num_frames_total)
        return cast(HeartbeatStatus, status.decode())

    def complete(self, task: Task, result: dict[str, Any]) -> bool:
        return self._finish(task, "completed", "result", json.dumps(result)) == "completed"

    def fail(self, task: Task, message: str, code: str) -> bool:
        return bool(self._finish(task, "failed", "error", message, "error_code", code))

    def cancel(self, task: Task) -> bool:
        return bool(self._finish(task, "canceled"))

    def release(self, task: Task, *, pause_seconds: float = 0.0, count_attempt: bool = False) -> bool:
        return bool(self._run(scripts.RELEASE, task.id, task.lease, pause_seconds, 0 if count_attempt else 1))

    # --- webhooks

    def claim_webhook(self, lease_seconds: float, busy_hosts: Collection[str] = ()) -> Task | None:
        return _task_or_none(_pairs(self._run(scripts.CLAIM_WEBHOOK, lease_seconds, *busy_hosts)))

    def pause_webhook(self, task: Task, seconds: float) -> None:
        self._run(scripts.PAUSE_WEBHOOK, task.id, seconds)

    def end_webhook(self, task: Task) -> None:
        with self._client.commands() as client:
            client.zrem(self._prefix + "webhooks", task.id)

    # --- maintenance

    def expire(self, finished_before: float) -> list[str]:
        filenames: list[str] = []
        while True:
            try:
                results = self._run(scripts.EXPIRE, finished_before, self._expire_batch)
            except StorageUnavailable:
                if filenames:
                    return filenames
                raise
            filenames += audio_filenames(json.loads(result) for result in results if result)
            if len(results) < self._expire_batch:
                return filenames

    def close(self) -> None:
        self._client.close()

    # --- internals

    def _finish(self, task: Task, state: State, *outcome: str) -> str:
        """Finish a leased task; return its final state, "" if the lease has ended."""
        final_state: bytes = self._run(scripts.FINISH, task.id, task.lease, state, NUM_RECENT_RUNS, *outcome)
        return final_state.decode()

    def _run(self, script: str, *arguments: Any) -> Any:
        """Run a script after the prelude. Raises StorageUnavailable."""
        now = "" if self._clock is None else repr(self._clock())
        reply = self._client.run(scripts.PRELUDE + script, [self._prefix], [now, *arguments])
        if script != scripts.SUBMIT:  # no client can be waiting for a change of a new task
            self._signal.notify()
        return reply


def _pairs(reply: list[bytes]) -> dict[bytes, bytes]:
    """Return the flat list that HGETALL yields inside a script as a mapping."""
    return dict(zip(reply[::2], reply[1::2], strict=True))


def _task_or_none(row: dict[bytes, bytes]) -> Task | None:
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
