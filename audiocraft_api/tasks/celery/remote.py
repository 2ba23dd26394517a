"""Synchronous generations made on other machines: a task, waited for. What the server has in an engine's place.

A server that works no tasks loads no model. Knows the task service and the store of audio; no transport, no HTTP.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from audiocraft_api.core.errors import (
    AudioGone,
    Canceled,
    DeadlineExceeded,
    NotFound,
    NotStreamable,
    ShuttingDown,
    StorageUnavailable,
    error_of,
)
from audiocraft_api.core.waiting import POLL_SECONDS, Waiter
from audiocraft_api.generation.command import GenerateCommand, GeneratedBytes, GeneratedFile
from audiocraft_api.generation.recipe import Recipe
from audiocraft_api.generation.streaming import AudioStream
from audiocraft_api.storage.base import AudioStore
from audiocraft_api.tasks.service import TaskService
from audiocraft_api.tasks.task import Task

# The owner of tasks that a route waits for: no key's id, so that nobody sees them but the route.
INTERACTIVE_OWNER = "(waited for)"
NOT_STREAMABLE = "This server makes its audio on other machines and cannot stream it; use /generate or /generate-async."


class RemoteGeneration:
    """Fills `Generation` with tasks that workers elsewhere run, and whose audio they put into the shared store."""

    def __init__(self, tasks: TaskService, files: AudioStore) -> None:
        self._tasks = tasks
        self._files = files
        self._stopping = threading.Event()
        self._condition = threading.Condition()
        self._num_waiting = 0

    def generate_file(self, command: GenerateCommand, waiter: Waiter) -> GeneratedFile:
        """Have a file made. Raises what ended the task, QueueFull, Canceled, DeadlineExceeded, StorageUnavailable."""
        result = self._run(command, waiter)
        filename = result["filename"]
        return GeneratedFile(filename, self._files.url_for(filename), Recipe.from_dict(result))

    def generate_bytes(self, command: GenerateCommand, waiter: Waiter) -> GeneratedBytes:
        """Have audio made that is kept nowhere. Raises as `generate_file`."""
        result = self._run(command, waiter)
        try:
            with self._files.open(result["filename"]).file as file:
                audio = file.read()
        except NotFound as error:
            raise AudioGone("The audio was made and is not there; do the workers share the server's store?") from error
        with suppress(StorageUnavailable):  # the expiry of its task will
            self._files.delete(result["filename"])
        return GeneratedBytes(audio, Recipe.from_dict(result))

    def stream(self, command: GenerateCommand) -> AudioStream:  # noqa: ARG002
        """Raise NotStreamable: workers deliver whole files."""
        raise NotStreamable(NOT_STREAMABLE)

    def close(self, grace_seconds: float) -> None:
        """Let clients wait on for `grace_seconds`, then end their waiting with ShuttingDown."""
        with self._condition:
            self._condition.wait_for(lambda: not self._num_waiting, grace_seconds)
        self._stopping.set()

    def _run(self, command: GenerateCommand, waiter: Waiter) -> dict[str, Any]:
        with self._counted():
            task = self._tasks.submit(command, owner=INTERACTIVE_OWNER)
            try:
                task = self._await_end(task, replace(waiter, stopping=self._stopping))
            except (Canceled, DeadlineExceeded, ShuttingDown):
                self._cancel(task)
                raise
        if task.state == "completed" and task.result is not None:
            return task.result
        if task.state == "failed":
            raise error_of(task.error_code or "", task.error or "The generation failed.")
        raise Canceled

    def _await_end(self, task: Task, waiter: Waiter) -> Task:
        while not task.is_final:
            waiter.raise_if_stopped()
            try:
                task = self._tasks.wait_for_change(task, POLL_SECONDS)
            except StorageUnavailable:  # the task goes on: outlast the outage
                self._stopping.wait(POLL_SECONDS)
        return task

    def _cancel(self, task: Task) -> None:
        with suppress(StorageUnavailable, NotFound):  # then it runs to its end, and its audio expires
            self._tasks.cancel(task.id, task.owner)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._condition:
            self._num_waiting += 1
        try:
            yield
        finally:
            with self._condition:
                self._num_waiting -= 1
                self._condition.notify_all()
