"""The task store of one machine: an SQLite file that its processes share. Not safe on network file systems."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from audiocraft_api.core.errors import StorageUnavailable
from audiocraft_api.state.sqlite import SqliteFile
from audiocraft_api.tasks.store import sqlite_schema as schema
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
from audiocraft_api.tasks.task import INTERRUPTED_CODE, INTERRUPTED_MESSAGE, NewTask, QueueStatus, State, Task

TASK_FIELDS = tuple(field.name for field in fields(Task))


class SqliteTaskStore:
    """A `TaskStore` in one file.

    `clock` times leases and must be common to the machine's processes. `poll_seconds` bounds how late a waiter notices
    a change by another process. `expire_batch` is the number of tasks deleted in one transaction; small, because
    other writers wait for it.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_attempts: int,
        busy_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        poll_seconds: float = 1.0,
        expire_batch: int = 500,
        on_unavailable: Callable[[], None] | None = None,
    ) -> None:
        self._signal = ChangeSignal(poll_seconds)
        self._file = SqliteFile(path, schema.LAYOUT, busy_seconds, on_unavailable)
        self._max_attempts = max_attempts
        self._clock = clock
        self._wall_clock = wall_clock
        self._expire_batch = expire_batch

    # --- clients

    def submit(self, new: NewTask, *, max_queued: int, max_audio_bytes: int, max_unfinished: int = 0) -> Task:
        with self._file.write() as db:
            values = self._values(new)
            if duplicate := db.execute(schema.FIND_DUPLICATE, values).fetchone():
                return check_fingerprint(_task(duplicate), new)
            if max_unfinished and new.owner is not None:
                (num_unfinished,) = db.execute(schema.NUM_UNFINISHED, values).fetchone()
                if num_unfinished >= max_unfinished:
                    raise too_many_tasks(num_unfinished)
            (num_queued,) = db.execute("SELECT count(*) FROM tasks WHERE state = 'queued'").fetchone()
            if num_queued >= max_queued:
                raise queue_full(num_queued)
            if new.audio is not None:
                (num_bytes,) = db.execute("SELECT total(length(data)) FROM audio").fetchone()
                if num_bytes + len(new.audio) > max_audio_bytes:
                    raise audio_full()
            task = _task(db.execute(schema.INSERT, values).fetchone())
            if new.audio is not None:
                db.execute("INSERT INTO audio (task_id, data) VALUES (?, ?)", (new.id, new.audio))
            return task

    def get(self, task_id: str) -> Task | None:
        with self._file.read() as db:
            row = db.execute("SELECT * FROM tasks WHERE id = ?", (task_id,)).fetchone()
        return _task(row) if row else None

    def find_by_key(self, owner: str | None, idempotency_key: str) -> Task | None:
        values = {"id": None, "owner": owner, "idempotency_key": idempotency_key}
        with self._file.read() as db:
            row = db.execute(schema.FIND_DUPLICATE, values).fetchone()
        return _task(row) if row else None

    def audio(self, task_id: str) -> bytes | None:
        with self._file.read() as db:
            row = db.execute("SELECT data FROM audio WHERE task_id = ?", (task_id,)).fetchone()
        return bytes(row["data"]) if row else None

    def page(self, owner: str | None, *, before: int | None = None, limit: int = 50) -> list[Task]:
        with self._file.read() as db:
            rows = db.execute(schema.PAGE, {"owner": owner, "before": before, "limit": limit}).fetchall()
        return [_task(row) for row in rows]

    def position(self, task_id: str) -> int | None:
        with self._file.read() as db:
            (position,) = db.execute(schema.POSITION, (task_id,)).fetchone()
        return position or None

    def status(self) -> QueueStatus:
        with self._file.read() as db:
            num_queued, num_processing = db.execute(schema.COUNTS).fetchone()
            (mean_run_seconds,) = db.execute(schema.MEAN_RUN_SECONDS, (NUM_RECENT_RUNS,)).fetchone()
        return QueueStatus(num_queued, num_processing, mean_run_seconds)

    def request_cancel(self, task_id: str) -> Task | None:
        with self._change() as db:
            if db.execute(schema.CAN_CANCEL_NOW, {"id": task_id, "now": self._clock()}).fetchone():
                self._end(db, task_id, "canceled")
            else:
                db.execute(schema.REQUEST_CANCEL, {"id": task_id, "time": self._wall_clock()})
            row = db.execute("SELECT * FROM tasks WHERE id = ?", (task_id,)).fetchone()
            return _task(row) if row else None

    def wait_for_change(self, task_id: str, version: int, timeout_seconds: float) -> Task | None:
        return self._signal.wait_for_change(self, task_id, version, timeout_seconds)

    # --- workers

    def claim(self, worker_id: str, lease_seconds: float, task_id: str | None = None) -> Task | None:
        with self._change() as db:
            now = self._clock()
            running = db.execute(schema.LEASED_TO_WORKER, {"now": now, "worker": f"{worker_id}/"}).fetchall()
            if any(other["attempts"] > self._max_attempts for other in running):
                return None  # that task is in its extra attempt and must run alone
            find_candidate = schema.CLAIMABLE if task_id else schema.NEXT_CLAIMABLE
            while row := db.execute(find_candidate, {"now": now, "id": task_id}).fetchone():
                num_attempts_left = self._max_attempts - row["attempts"]
                if row["cancel_requested"]:
                    self._end(db, row["id"], "canceled")
                elif num_attempts_left == 0 and row["ran_with_others"]:
                    if running:
                        return None  # it must run alone: wait until the worker's other tasks have finished
                    return self._lease(db, row["id"], worker_id, lease_seconds, ran_with_others=True)
                elif num_attempts_left <= 0:
                    message = INTERRUPTED_MESSAGE.format(attempts=row["attempts"])
                    self._end(db, row["id"], "failed", error=message, error_code=INTERRUPTED_CODE)
                else:
                    db.executemany(schema.MARK_RAN_WITH_OTHERS, [(other["id"],) for other in running])
                    return self._lease(db, row["id"], worker_id, lease_seconds, ran_with_others=bool(running))
            return None

    def heartbeat(self, task: Task, num_frames_done: int, num_frames_total: int) -> HeartbeatStatus:
        beat = {
            "id": task.id,
            "lease": task.lease,
            "now": self._clock(),
            "time": self._wall_clock(),
            "done": num_frames_done,
            "total": num_frames_total,
        }
        with self._change(durable=False) as db:  # losing a heartbeat in a power cut is harmless
            row = db.execute(schema.HEARTBEAT, beat).fetchone()
        if row is None:
            return "lost"
        return "canceled" if row["cancel_requested"] else "leased"

    def complete(self, task: Task, result: dict[str, Any]) -> bool:
        return self._finish(task, "completed", result=json.dumps(result)) == "completed"

    def fail(self, task: Task, message: str, code: str) -> bool:
        return self._finish(task, "failed", error=message, error_code=code) is not None

    def cancel(self, task: Task) -> bool:
        return self._finish(task, "canceled") is not None

    def release(self, task: Task, *, pause_seconds: float = 0.0, count_attempt: bool = False) -> bool:
        with self._change() as db:
            row = db.execute(schema.FIND_LEASED, (task.id, task.lease)).fetchone()
            if row is None:
                return False
            if row["cancel_requested"]:
                self._end(db, task.id, "canceled")
                return True
            release = {
                "id": task.id,
                "uncounted": 0 if count_attempt else 1,
                "held_until": self._clock() + pause_seconds,
                "hold_seconds": pause_seconds,
                "time": self._wall_clock(),
            }
            db.execute(schema.RELEASE, release)
            return True

    # --- webhooks

    def claim_webhook(self, lease_seconds: float, busy_hosts: Collection[str] = ()) -> Task | None:
        now = self._clock()
        lease = {
            "now": now,
            "held_until": now + lease_seconds,
            "hold_seconds": lease_seconds,
            "busy_hosts": json.dumps(list(busy_hosts)),
        }
        with self._file.write(durable=False) as db:  # losing this in a power cut only repeats a delivery
            row = db.execute(schema.CLAIM_WEBHOOK, lease).fetchone()
        return _task(row) if row else None

    def pause_webhook(self, task: Task, seconds: float) -> None:
        pause = {"id": task.id, "held_until": self._clock() + seconds, "hold_seconds": seconds}
        with self._file.write(durable=False) as db:
            db.execute(schema.PAUSE_WEBHOOK, pause)

    def end_webhook(self, task: Task) -> None:
        with self._file.write(durable=False) as db:
            db.execute("UPDATE tasks SET webhook_pending = 0 WHERE id = ?", (task.id,))

    # --- maintenance

    def expire(self, finished_before: float) -> list[str]:
        filenames: list[str] = []
        while True:
            try:
                with self._file.write() as db:
                    rows = db.execute(schema.EXPIRE, (finished_before, self._expire_batch)).fetchall()
            except StorageUnavailable:
                if filenames:
                    return filenames
                raise
            filenames += audio_filenames(json.loads(row["result"]) for row in rows if row["result"])
            if len(rows) < self._expire_batch:
                return filenames

    def close(self) -> None:
        self._file.close()

    # --- internals

    @contextmanager
    def _change(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Open a write transaction, and wake the waiters once it is committed."""
        with self._file.write(durable=durable) as db:
            yield db
        self._signal.notify()

    def _values(self, new: NewTask) -> dict[str, Any]:
        return {
            "id": new.id,
            "command": json.dumps(new.command),
            "owner": new.owner,
            "time": self._wall_clock(),
            "idempotency_key": new.idempotency_key,
            "fingerprint": new.fingerprint,
            "webhook_url": new.webhook_url,
            "webhook_host": host_of(new.webhook_url),
        }

    def _lease(
        self, db: sqlite3.Connection, task_id: str, worker_id: str, lease_seconds: float, *, ran_with_others: bool
    ) -> Task:
        lease = {
            "id": task_id,
            "lease": f"{worker_id}/{secrets.token_hex(8)}",
            "ran_with_others": ran_with_others,
            "held_until": self._clock() + lease_seconds,
            "hold_seconds": lease_seconds,
            "time": self._wall_clock(),
        }
        return _task(db.execute(schema.LEASE, lease).fetchone())

    def _finish(self, task: Task, state: State, **outcome: str) -> State | None:
        """Finish a leased task; return its final state, None if the lease has ended."""
        with self._change() as db:
            row = db.execute(schema.FIND_LEASED, (task.id, task.lease)).fetchone()
            if row is None:
                return None
            if row["cancel_requested"]:
                state, outcome = "canceled", {}
            self._end(db, task.id, state, **outcome)
            return state

    def _end(self, db: sqlite3.Connection, task_id: str, state: State, **outcome: str) -> None:
        ending = {"id": task_id, "state": state, "result": None, "error": None, "error_code": None, **outcome}
        db.execute(schema.END, {**ending, "time": self._wall_clock()})
        db.execute("DELETE FROM audio WHERE task_id = ?", (task_id,))


def _task(row: sqlite3.Row) -> Task:
    values = {name: row[name] for name in TASK_FIELDS}
    values["command"] = json.loads(row["command"])
    values["result"] = json.loads(row["result"]) if row["result"] else None
    values["cancel_requested"] = bool(row["cancel_requested"])
    return Task(**values)
