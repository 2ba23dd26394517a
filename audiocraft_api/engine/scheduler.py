"""Who runs: the waiting line, first come first served, and admission by free slots. Knows no torch and no model."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine.slot_pool import SlotPool

ROWS_PER_REQUEST = 2  # a guided request's conditional and null row


class Scheduler:
    """The waiting line of one model, filled by callers' threads and emptied by the engine's."""

    def __init__(self, max_requests: int) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[EngineRequest] = deque()
        self._slots = SlotPool(0)
        self._max_requests = self._num_places = max_requests
        self._num_running = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return self._num_running

    @property
    def num_overdue(self) -> int:
        """Requests that wait beyond those that free places will take at once; what the bound of the line counts."""
        return max(0, len(self._waiting) - (self._num_places - self._num_running))

    def add(self, request: EngineRequest) -> None:
        with self._lock:
            self._waiting.append(request)

    def open(self, num_slots: int) -> None:
        """Give the places that a prepared model has; all are free."""
        self._slots = SlotPool(num_slots)
        self._num_places = min(self._max_requests, num_slots // ROWS_PER_REQUEST)
        self._num_running = 0

    def close(self) -> None:
        """Forget who was running, after the loop has broken off."""
        self._num_places = self._max_requests
        self._num_running = 0

    def admit(self) -> Iterator[tuple[EngineRequest, list[int]]]:
        """Take requests from the head of the line while there are slots for them."""
        while self._num_running < self._num_places and len(self._slots) >= ROWS_PER_REQUEST:
            with self._lock:
                if not self._waiting:
                    return
                request = self._waiting.popleft()
            self._num_running += 1
            yield request, [self._slots.take() for _ in range(ROWS_PER_REQUEST)]

    def give_back(self, slot: int) -> None:
        """Return a slot that a running request does not need."""
        self._slots.give_back(slot)

    def leave(self, slots: list[int]) -> None:
        """Return all slots of a request that has stopped running."""
        self._num_running -= 1
        for slot in slots:
            self._slots.give_back(slot)

    def take_waiting(self) -> list[EngineRequest]:
        """Empty the line."""
        with self._lock:
            taken, self._waiting = list(self._waiting), deque()
        return taken

    def take_stopped(self) -> list[EngineRequest]:
        """Take those out of the line that were canceled or are past their deadline."""
        with self._lock:
            stopped = [request for request in self._waiting if request.should_stop]
            for request in stopped:
                self._waiting.remove(request)
        return stopped
