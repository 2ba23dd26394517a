"""The events of generations and tasks that metrics and traces need. `telemetry` implements it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from audiocraft_api.core.request import EngineRequest


class Observer:
    """Receives events; this base class ignores them. Thread-safe. No method raises or blocks."""

    def generation_started(self, request: EngineRequest) -> None:
        """The engine has accepted a request. Called in the thread that submitted it."""

    def step(self, name: str) -> AbstractContextManager[object]:  # noqa: ARG002
        """Surround a step that follows a generation: `loop`, `separate`, `convert` or `store`."""
        return nullcontext()

    def cache_lookup(self, *, hit: bool) -> None:
        """The result cache was queried."""

    def task(self, task_id: str, attempt: int, traceparent: str | None) -> AbstractContextManager[object]:  # noqa: ARG002
        """Surround a task that runs in this thread. `traceparent` is that of the request that submitted the task."""
        return nullcontext()

    def task_ended(self, state: str) -> None:
        """A task has reached its final state in this process."""

    def webhook_called(self, outcome: str) -> None:
        """A webhook was called: `delivered`, `failed` (it is repeated) or `given_up`."""

    def storage_failed(self, store: str) -> None:
        """A store (`audio`, `tasks` or `keys`) was unavailable for an operation."""

    def trace(self) -> str | None:
        """Return the W3C `traceparent` of this thread's current span, for another process to continue."""
        return None


NULL_OBSERVER = Observer()
