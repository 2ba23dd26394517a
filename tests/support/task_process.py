"""A process that submits or runs tasks until it is killed: `task_process.py submit|work <store> <lease seconds>`.

It prints a line after each step that the store has confirmed. A worker exits when no task is left.
"""

from __future__ import annotations

import sys
import time
import uuid
from pathlib import Path

from audiocraft_api.core.errors import QueueFull
from audiocraft_api.tasks.store.base import TaskStore
from audiocraft_api.tasks.store.sqlite import SqliteTaskStore
from audiocraft_api.tasks.task import NewTask

MAX_QUEUED = 60
MANY_ATTEMPTS = 100  # so that kills do not fail the tasks


def open_store(address: str) -> TaskStore:
    if address.startswith("redis://"):
        from audiocraft_api.tasks.store.redis import RedisTaskStore  # slow to import and rarely needed

        url, _, prefix = address.partition("#")
        return RedisTaskStore(url, max_attempts=MANY_ATTEMPTS, prefix=prefix)
    return SqliteTaskStore(Path(address), max_attempts=MANY_ATTEMPTS)


def submit(store: TaskStore) -> None:
    while True:
        new = NewTask(str(uuid.uuid4()), {"prompt": "killed"}, audio=b"audio" * 1000)
        try:
            print("accepted", store.submit(new, max_queued=MAX_QUEUED, max_audio_bytes=10**9).id, flush=True)
        except QueueFull:
            print("refused", flush=True)
            time.sleep(0.01)


def work(store: TaskStore, lease_seconds: float) -> None:
    worker_id = str(uuid.uuid4())
    while True:
        task = store.claim(worker_id, lease_seconds)
        if task is None:
            status = store.status()
            if status.num_queued + status.num_processing == 0:
                return
            time.sleep(0.02)
            continue
        print("claimed", task.id, flush=True)
        store.heartbeat(task, 1, 2)
        if store.complete(task, {"filename": f"{task.id}.wav"}):
            print("completed", task.id, flush=True)


if __name__ == "__main__":
    role, address, seconds = sys.argv[1:]
    if role == "submit":
        submit(open_store(address))
    else:
        work(open_store(address), float(seconds))
