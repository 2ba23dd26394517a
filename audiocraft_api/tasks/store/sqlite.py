"""The task store of one machine: an SQLite file that its processes share. Not for network file systems."""

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

from audiocraft_api.core.errors import QueueFull, StorageUnavailable, TooManyTasks
from audiocraft_api.state.sqlite import SqliteFile
from audiocraft_api.tasks.store import sqlite_schema as schema
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

POLL_SECONDS = 1.0  # for changes by other processes; those of this one wake their waiters at once
EXPIRE_BATCH = 500  # tasks forgotten in one transaction, so that it stays short

TASK_FIELDS = tuple(field.name for field in fields(Task))


class SqliteTaskStore:
    """A `TaskStore` in one file. `clock` times the holds and must be common to the machine's processes."""

    def __init__(
        self,
        path: Path,
        *,
        max_attempts: int,
        busy_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._signal = ChangeSignal(POLL_SECONDS)
        self._file = SqliteFile(path, schema.LAYOUT, busy_seconds)
        self._max_attempts = max_attempts
        self._clock = clock
        self._wall_clock = wall_clock

    # --- clients

    def submit(self, new: NewTask, *, max_queued: int, max_audio_bytes: int, max_unfinished: int = 0) -> Task:
        with self._file.write() as db:
            row = self._row(new)
            if twin := db.execute(schema.FIND_TWIN, row).fetchone():
                return check_fingerprint(_task(twin), new)
            if max_unfinished and new.owner is not None:
                (num_unfinished,) = db.execute(schema.NUM_UNFINISHED, row).fetchone()
                if num_unfinished >= max_unfinished:
                    raise TooManyTasks(TOO_MANY_MESSAGE.format(num_tasks=num_unfinished))
            (num_queued,) = db.execute("SELECT count(*) FROM tasks WHERE state = 'queued'").fetchone()
            if num_queued >= max_queued:
                raise QueueFull(f"{num_queued} tasks are waiting already; try again later.")
            if new.audio is not None:
                (num_bytes,) = db.execute("SELECT total(length(data)) FROM audio").fetchone()
                if num_bytes + len(new.audio) > max_audio_bytes:
                    raise QueueFull("The waiting tasks hold as many tunes as there is room for; try again later.")
            task = _task(db.execute(schema.INSERT, row).fetchone())
            if new.audio is not None:
                db.execute("INSERT INTO audio (task_id, data) VALUES (?, ?)", (new.id, new.audio))
            return task

    def get(self, task_id: str) -> Task | None:
        with self._file.read() as db:
            row = db.execute("SELECT * FROM tasks WHERE id = ?", (task_id,)).fetchone()
        return _task(row) if row else None

    def made_by(self, owner: str | None, idempotency_key: str) -> Task | None:
        with self._file.read() as db:
            twin = {"id": None, "owner": owner, "idempotency_key": idempotency_key}
            row = db.execute(schema.FIND_TWIN, twin).fetchone()
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
            if db.execute(schema.IS_UNHELD, {"id": task_id, "now": self._clock()}).fetchone():
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
            others = db.execute(schema.HELD_BY, {"now": now, "worker": f"{worker_id}/"}).fetchall()
            if any(other["attempts"] > self._max_attempts for other in others):
                return None  # that one runs alone
            claimable = schema.CLAIMABLE if task_id else schema.NEXT_CLAIMABLE
            while row := db.execute(claimable, {"now": now, "id": task_id}).fetchone():
                num_left = self._max_attempts - row["attempts"]
                if row["cancel_requested"]:
                    self._end(db, row["id"], "canceled")
                elif num_left == 0 and row["in_company"]:
                    if others:
                        return None  # until they have ended
                    return self._claim(db, row["id"], worker_id, lease_seconds, in_company=True)
                elif num_left <= 0:
                    message = INTERRUPTED_MESSAGE.format(attempts=row["attempts"])
                    self._end(db, row["id"], "failed", error=message, error_code=INTERRUPTED_CODE)
                else:
                    db.executemany("UPDATE tasks SET in_company = 1 WHERE id = ?", [(other["id"],) for other in others])
                    return self._claim(db, row["id"], worker_id, lease_seconds, in_company=bool(others))
            return None

    def heartbeat(self, task: Task, num_frames_done: int, num_frames_total: int) -> HeartbeatResponse:
        beat = {
            "id": task.id,
            "lease": task.lease,
            "now": self._clock(),
            "time": self._wall_clock(),
            "done": num_frames_done,
            "total": num_frames_total,
        }
        with self._change(durable=False) as db:  # a lost heartbeat harms nothing: spare the disk
            row = db.execute(schema.HEARTBEAT, beat).fetchone()
        if row is None:
            return "lost"
        return "canceled" if row["cancel_requested"] else "held"

    def complete(self, task: Task, result: dict[str, Any]) -> bool:
        return self._finish(task, "completed", result=json.dumps(result)) == "completed"

    def fail(self, task: Task, message: str, code: str) -> bool:
        return self._finish(task, "failed", error=message, error_code=code) is not None

    def cancel(self, task: Task) -> bool:
        return self._finish(task, "canceled") is not None

    def release(self, task: Task, *, pause_seconds: float = 0.0, count_attempt: bool = False) -> bool:
        with self._change() as db:
            row = db.execute(schema.SHOW_LEASE, (task.id, task.lease)).fetchone()
            if row is None:
                return False
            if row["cancel_requested"]:
                self._end(db, task.id, "canceled")
                return True
            release = {
                "id": task.id,
                "given_back": 0 if count_attempt else 1,
                "held_until": self._clock() + pause_seconds,
                "hold_seconds": pause_seconds,
                "time": self._wall_clock(),
            }
            db.execute(schema.RELEASE, release)
            return True

    # --- webhooks

    def claim_webhook(self, hold_seconds: float, busy_hosts: Collection[str] = ()) -> Task | None:
        now = self._clock()
        hold = {
            "now": now,
            "held_until": now + hold_seconds,
            "hold_seconds": hold_seconds,
            "busy_hosts": json.dumps(list(busy_hosts)),
        }
        with self._file.write(durable=False) as db:  # what is lost is told again
            row = db.execute(schema.CLAIM_WEBHOOK, hold).fetchone()
        return _task(row) if row else None

    def pause_webhook(self, task: Task, seconds: float) -> None:
        pause = {"id": task.id, "held_until": self._clock() + seconds, "hold_seconds": seconds}
        with self._file.write(durable=False) as db:
            db.execute(schema.PAUSE_WEBHOOK, pause)

    def end_webhook(self, task: Task) -> None:
        with self._file.write(durable=False) as db:
            db.execute("UPDATE tasks SET webhook_pending = 0 WHERE id = ?", (task.id,))

    # --- upkeep

    def expire(self, finished_before: float) -> list[str]:
        filenames: list[str] = []
        while True:
            try:
                with self._file.write() as db:
                    rows = db.execute(schema.EXPIRE, (finished_before, EXPIRE_BATCH)).fetchall()
            except StorageUnavailable:
                if filenames:
                    return filenames
                raise
            filenames += audio_filenames(json.loads(row["result"]) for row in rows if row["result"])
            if len(rows) < EXPIRE_BATCH:
                return filenames

    def close(self) -> None:
        self._file.close()

    # --- inside

    @contextmanager
    def _change(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Write what somebody may wait to see."""
        with self._file.write(durable=durable) as db:
            yield db
        self._signal.notify()

    def _row(self, new: NewTask) -> dict[str, Any]:
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

    def _claim(
        self, db: sqlite3.Connection, task_id: str, worker_id: str, lease_seconds: float, *, in_company: bool
    ) -> Task:
        claim = {
            "id": task_id,
            "lease": f"{worker_id}/{secrets.token_hex(8)}",
            "in_company": in_company,
            "held_until": self._clock() + lease_seconds,
            "hold_seconds": lease_seconds,
            "time": self._wall_clock(),
        }
        return _task(db.execute(schema.CLAIM, claim).fetchone())

    def _finish(self, task: Task, state: State, **outcome: str) -> State | None:
        """End a claimed task; return the state that it got, None when the claim has ended."""
        with self._change() as db:
            row = db.execute(schema.SHOW_LEASE, (task.id, task.lease)).fetchone()
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
