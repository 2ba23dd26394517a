"""Shows the progress of a task on a terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Optional, TextIO

from audiocraft_api_client._requests import Task
from audiocraft_api_client.models import TaskWorkingResponse

BAR_CHARACTERS = 30


class TerminalProgress:
    """An `on_progress` that draws a bar in one line of a terminal. Draws nothing if `file` is not a terminal."""

    def __init__(self, file: Optional[TextIO] = None) -> None:
        self._file = sys.stderr if file is None else file
        self._enabled = self._file.isatty()

    def __call__(self, task: Task) -> None:
        if isinstance(task, TaskWorkingResponse):
            self._draw(line_of(task))

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._draw("")

    def _draw(self, line: str) -> None:
        if self._enabled:
            self._file.write(f"\r\x1b[K{line}")  # erases the previous line
            self._file.flush()


def line_of(task: TaskWorkingResponse) -> str:
    """Return a line that shows an unfinished task."""
    if task.queue_position is not None:
        return f"Waiting, position {task.queue_position} in the queue"
    done = task.current / task.total if task.total else 0.0
    bar = "█" * round(done * BAR_CHARACTERS)
    left = "" if task.eta_seconds is None else f", {task.eta_seconds:.0f} s left"
    return f"{bar:░<{BAR_CHARACTERS}} {done:4.0%}{left}"
