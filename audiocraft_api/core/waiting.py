"""Blocks a request's thread until something is done or there is a reason to stop waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from audiocraft_api.core.errors import ClientDisconnected, DeadlineExceeded, ShuttingDown

POLL_SECONDS = 0.1


@dataclass(frozen=True, eq=False)
class Waiter:
    """The reasons for one request to stop waiting: client disconnected, deadline passed, server shutting down.

    `timeout_seconds` counts from `started` (`time.monotonic()`).
    """

    client_gone: Callable[[], bool] = lambda: False
    timeout_seconds: float | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.monotonic)

    @property
    def deadline(self) -> float | None:
        """The `time.monotonic()` value at which to stop waiting; None without a time limit."""
        return None if self.timeout_seconds is None else self.started + self.timeout_seconds

    def raise_if_stopped(self) -> None:
        """Raise ClientDisconnected, ShuttingDown or DeadlineExceeded when there is a reason to stop waiting."""
        if self.client_gone():
            raise ClientDisconnected
        if self.stopping.is_set():
            raise ShuttingDown
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise DeadlineExceeded(
                f"The generation did not finish within {self.timeout_seconds:.6g} seconds. "
                "Request less audio or try again later."
            )

    def wait_for(self, is_done: Callable[[float], bool], poll_seconds: float = POLL_SECONDS) -> None:
        """Call `is_done(poll_seconds)`, which blocks for at most that long, until it returns True.

        Raises as `raise_if_stopped`.
        """
        while not is_done(poll_seconds):
            self.raise_if_stopped()
