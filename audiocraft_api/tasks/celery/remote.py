"""Synchronous generation by workers on other machines: submits a task and waits for its end.

It takes the place of an engine in a server that runs no tasks itself and therefore loads no model. Knows the task
service and the audio store, but no message transport and no HTTP.
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
from audiocraft_api.core.waiting import Waiter
from audiocraft_api.generation.command import FailedVariation, GenerateCommand, GeneratedBytes, GeneratedFile, StemFile
from audiocraft_api.generation.recipe import Recipe
from audiocraft_api.generation.streaming import AudioStream
from audiocraft_api.generation.variations import first_made
from audiocraft_api.storage.base import AudioStore
from audiocraft_api.tasks.service import TaskService
from audiocraft_api.tasks.task import Task

# The owner of tasks that a synchronous route waits for. It is no key's id, so that no client can list or read them.
# The value is stored with the tasks and must not change.
INTERACTIVE_OWNER = "(waited for)"
NOT_STREAMABLE = "This server generates audio on other machines and cannot stream it. Use /generate or /generate-async."


class RemoteGeneration:
    """Implements `Generation` by tasks that remote workers run; they save the audio to the shared store."""

    def __init__(self, tasks: TaskService, files: AudioStore) -> None:
        self._tasks = tasks
        self._files = files
        self._stopping = threading.Event()
        self._condition = threading.Condition()
        self._num_waiting = 0

    def generate_file(self, command: GenerateCommand, waiter: Waiter) -> GeneratedFile:
        """Generate audio and return its file.

        Raises the error that ended the task, QueueFull, Canceled, DeadlineExceeded, ShuttingDown, StorageUnavailable.
        """
        result = self._run(command, waiter)
        variations = tuple(
            _failed(part) if "error" in part else self._file(part) for part in result.get("variations", ())
        )
        return replace(self._file(result), variations=variations)

    def generate_bytes(self, command: GenerateCommand, waiter: Waiter) -> GeneratedBytes:
        """Generate audio and return its bytes without keeping a file. Raises the same errors as `generate_file`."""
        result = self._run(command, waiter)
        if "variations" not in result:
            return self._bytes(result)
        parts = [_failed(part) if "error" in part else self._bytes(part) for part in result["variations"]]
        return replace(first_made(parts), variations=tuple(parts))

    def stream(self, command: GenerateCommand) -> AudioStream:  # noqa: ARG002
        """Raise NotStreamable: workers deliver whole files."""
        raise NotStreamable(NOT_STREAMABLE)

    def store_stream(self, stream: AudioStream, output_format: str) -> GeneratedFile:  # noqa: ARG002
        """Raise NotStreamable: there are no streams."""
        raise NotStreamable(NOT_STREAMABLE)

    def close(self, grace_seconds: float) -> None:
        """Let clients wait for up to `grace_seconds` more, then end their requests with ShuttingDown."""
        with self._condition:
            self._condition.wait_for(lambda: not self._num_waiting, grace_seconds)
        self._stopping.set()

    def _file(self, result: dict[str, Any]) -> GeneratedFile:
        filename = result["filename"]
        stems = {name: StemFile(stem, self._files.url_for(stem)) for name, stem in result.get("stems", {}).items()}
        return GeneratedFile(filename, self._files.url_for(filename), Recipe.from_dict(result), stems=stems)

    def _bytes(self, result: dict[str, Any]) -> GeneratedBytes:
        """Read the files of a result and delete them. Raises AudioGone, StorageUnavailable."""
        stems = {name: self._taken(filename) for name, filename in result.get("stems", {}).items()}
        return GeneratedBytes(self._taken(result["filename"]), Recipe.from_dict(result), stems=stems)

    def _taken(self, filename: str) -> bytes:
        """Read a file and delete it. Raises AudioGone, StorageUnavailable."""
        try:
            with self._files.open(filename).file as file:
                audio = file.read()
        except NotFound as error:
            raise AudioGone(
                "The audio was generated, but this server cannot find it. Check that the workers and the server use "
                "the same audio store."
            ) from error
        with suppress(StorageUnavailable):  # otherwise it is deleted when its task expires
            self._files.delete(filename)
        return audio

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
        def is_final(poll_seconds: float) -> bool:
            nonlocal task
            try:
                task = self._tasks.wait_for_change(task, poll_seconds)
            except StorageUnavailable:  # the task continues: wait until the outage is over
                self._stopping.wait(poll_seconds)
            return task.is_final

        waiter.wait_for(is_final)
        return task

    def _cancel(self, task: Task) -> None:
        with suppress(StorageUnavailable, NotFound):  # then the task finishes, and its audio expires
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


def _failed(part: dict[str, Any]) -> FailedVariation:
    return FailedVariation(part["seed"], error_of(part["code"], part["error"]))
