"""Variations of one request: the same command with several seeds, generated at the same time."""

from __future__ import annotations

import contextvars
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from audiocraft_api.core.constants import MAX_SEED
from audiocraft_api.core.errors import AudioCraftError, Canceled, QueueFull, ShuttingDown
from audiocraft_api.core.waiting import Waiter
from audiocraft_api.generation.command import FailedVariation, GenerateCommand, GeneratedBytes

Made = TypeVar("Made")


def commands_of(command: GenerateCommand) -> list[GenerateCommand]:
    """Return a command for each variation. Variation i has the seed of the command plus i, modulo 2**53."""
    if command.n == 1:
        return [command]
    if command.seed is None:
        command = replace(command, seed=secrets.randbelow(MAX_SEED + 1), seed_drawn=True)
    first = command.seed or 0
    return [replace(command, n=1, seed=(first + index) % (MAX_SEED + 1)) for index in range(command.n)]


def make_all(
    commands: Sequence[GenerateCommand], make: Callable[[GenerateCommand, Waiter], GeneratedBytes], waiter: Waiter
) -> list[GeneratedBytes | FailedVariation]:
    """Make all variations at the same time, so that the engine decodes them in one batch.

    A variation that fails does not end the others. Raises Canceled, ClientDisconnected, QueueFull and ShuttingDown,
    which concern the request and not one variation; the others then stop.
    """
    stopped = threading.Event()
    shared = replace(waiter, client_gone=lambda: stopped.is_set() or waiter.client_gone())

    def outcome_of(command: GenerateCommand) -> GeneratedBytes | FailedVariation:
        try:
            return make(command, shared)
        except (Canceled, QueueFull, ShuttingDown):
            stopped.set()
            raise
        except AudioCraftError as error:
            return FailedVariation(command.seed or 0, error)
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(len(commands), "variation") as threads:
        # With the context of this thread, which has the request's ID and its trace.
        futures = [threads.submit(contextvars.copy_context().run, outcome_of, command) for command in commands]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:  # the cause, rather than the cancellation of the others
        if not isinstance(error, Canceled):
            raise error
    return [future.result() for future in futures]


def first_made(outcomes: Sequence[Made | FailedVariation]) -> Made:
    """Return the first variation that did not fail. If all failed, raises the error of the first."""
    for outcome in outcomes:
        if not isinstance(outcome, FailedVariation):
            return outcome
    assert isinstance(outcomes[0], FailedVariation)
    raise outcomes[0].error
