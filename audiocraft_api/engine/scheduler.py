"""Decides which requests run: a first-come, first-served queue, and admission while slots are free.

Knows nothing of torch or models.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from audiocraft_api.core.errors import AudioCraftError
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine.slot_pool import SlotPool

ROWS_PER_REQUEST = 2  # the conditional and the unconditional row of a guided request


class Scheduler:
    """The queue and the slots of one model. Callers' threads add requests, the loop's thread admits them."""

    def __init__(self, max_requests: int) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[EngineRequest] = deque()
        self._slots = SlotPool(0)
        self._max_requests = self._max_running = max_requests
        self._num_running = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return self._num_running

    @property
    def queue_depth(self) -> int:
        """Waiting requests beyond those that can be admitted immediately. `max_waiting` limits this number."""
        return max(0, len(self._waiting) - (self._max_running - self._num_running))

    @property
    def has_blocked_requests(self) -> bool:
        """Whether requests wait because there are no free slots for them."""
        return bool(self._waiting) and not self._has_room

    def position(self, request: EngineRequest) -> int | None:
        """Return the place of a request among those that cannot be admitted immediately, from 1; None if it can."""
        with self._lock:
            if request not in self._waiting:
                return None
            place = self._waiting.index(request) + 1 - (self._max_running - self._num_running)
        return place if place > 0 else None

    @property
    def _has_room(self) -> bool:
        return self._num_running < self._max_running and len(self._slots) >= ROWS_PER_REQUEST

    def add(self, request: EngineRequest) -> None:
        with self._lock:
            self._waiting.append(request)

    def set_slots(self, num_slots: int) -> None:
        """Use the slots of the model runner that was built; all of them are free."""
        self._slots = SlotPool(num_slots)
        self._max_running = min(self._max_requests, num_slots // ROWS_PER_REQUEST)
        self._num_running = 0

    def reset(self) -> None:
        """Forget the running requests after the loop has failed."""
        self._max_running = self._max_requests
        self._num_running = 0

    def admit(self) -> Iterator[tuple[EngineRequest, list[int]]]:
        """Yield requests from the head of the queue, with their slots, while there are slots for them."""
        while self._has_room:
            with self._lock:
                if not self._waiting:
                    return
                request = self._waiting.popleft()
            self._num_running += 1
            yield request, [self._slots.allocate() for _ in range(ROWS_PER_REQUEST)]

    def requeue(self, request: EngineRequest, slots: list[int]) -> None:
        """Free the slots of a running request and append it to the queue."""
        self.finish(slots)
        self.add(request)

    def free(self, slot: int) -> None:
        """Free a slot that a running request does not need."""
        self._slots.free(slot)

    def finish(self, slots: list[int]) -> None:
        """Free the slots of a request that no longer runs."""
        self._num_running -= 1
        for slot in slots:
            self._slots.free(slot)

    def fail_waiting(self, error: AudioCraftError) -> None:
        """Empty the queue and end its requests with `error`."""
        with self._lock:
            waiting, self._waiting = list(self._waiting), deque()
        for request in waiting:
            request.fail(error)

    def remove_stopped(self) -> list[EngineRequest]:
        """Remove the requests that were canceled or are past their deadline from the queue, and return them."""
        with self._lock:
            stopped = [request for request in self._waiting if request.should_stop]
            for request in stopped:
                self._waiting.remove(request)
        return stopped
