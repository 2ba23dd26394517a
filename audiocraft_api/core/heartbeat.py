"""Calls a function at a fixed interval while a block of code runs, for example to renew a lease."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Heartbeat:
    """Context manager that calls `beat` every `seconds` in its own thread until the block ends.

    The calls stop early once `beat` returns False. `beat` must not raise. Leaving the block waits for a call in
    progress, so no call happens after it.
    """

    def __init__(self, beat: Callable[[], bool], seconds: float, name: str) -> None:
        self._beat = beat
        self._seconds = seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds) and self._beat():
            pass
