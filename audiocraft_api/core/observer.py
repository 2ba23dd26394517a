"""What the service tells of its work while it does it. Who listens (metrics, traces) is above; by default nobody does."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from audiocraft_api.core.request import EngineRequest


class Observer:
    """Forgets what it is told. Thread-safe; no method raises or waits."""

    def generation_started(self, request: EngineRequest) -> None:
        """The engine has taken a request, from the thread that asked for it."""

    def step(self, name: str) -> AbstractContextManager[object]:  # noqa: ARG002
        """Surround a step of one result: `convert` or `store`."""
        return nullcontext()

    def cache_lookup(self, *, hit: bool) -> None:
        """A kept result was looked for, and found or not."""

    def task(self, task_id: str, attempt: int, traceparent: str | None) -> AbstractContextManager[object]:  # noqa: ARG002
        """Surround a task that runs in this thread. `traceparent` is that of the request that submitted it."""
        return nullcontext()

    def task_ended(self, state: str) -> None:
        """A task has got its final state here."""

    def webhook_called(self, outcome: str) -> None:
        """A webhook was called: `told`, `failed` (it comes again) or `given_up`."""

    def trace(self) -> str | None:
        """Return what this thread's work is traced under, as a W3C `traceparent`, for who goes on with it elsewhere."""
        return None
