"""The ids in log lines: of the request and of the task that the current thread works on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

request_id_var: ContextVar[str] = ContextVar("request_id", default="-")
task_id_var: ContextVar[str | None] = ContextVar("task_id", default=None)


@contextmanager
def log_lines_of(task_id: str) -> Iterator[None]:
    """Add the task's id to the JSON log lines that this thread writes inside the block."""
    token = task_id_var.set(task_id)
    try:
        yield
    finally:
        task_id_var.reset(token)
