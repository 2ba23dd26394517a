"""Admission: what a request must pass before it reaches the engine, and what it holds until its response ends.

Order of the checks: credential (`auth`), size and shape (`parsing`), then here: the model's limits, the prompt policy,
and the caller's limits: per minute, concurrent, per day. The endpoint itself reserves a request or stream slot last.
If anything fails after the daily quota was charged, the charge is refunded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

from flask import g, request

from audiocraft_api.access.limits import Admission
from audiocraft_api.access.rate_limiter import RateLimitState
from audiocraft_api.core.errors import Canceled
from audiocraft_api.core.params import Segment
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.model.catalog import ModelSpec
from audiocraft_api.web.auth import caller, client_address
from audiocraft_api.web.commands import command_of, performance_command
from audiocraft_api.web.disconnect import connection_of
from audiocraft_api.web.lifetime import at_response_end
from audiocraft_api.web.loops import check_loop_size, loop_shape_of
from audiocraft_api.web.request_checks import check_controls, check_duration, check_notes, check_texts, longest_seconds
from audiocraft_api.web.schemas.generation import GenerationFields, TextFields
from audiocraft_api.web.schemas.performance import PerformanceFields
from audiocraft_api.web.services import services

logger = logging.getLogger(__name__)


@contextmanager
def admitted(
    fields: GenerationFields, spec: ModelSpec, idempotency_key: str | None = None
) -> Iterator[GenerateCommand]:
    """Admit a validated request of the current caller and yield its command.

    The caller's concurrency slot is held until the response ends. The daily quota is charged, and refunded if the
    block raises anything but Canceled, unless `settle_charge` has decided otherwise. With `idempotency_key`, a request
    that repeats an accepted task is not charged.
    Raises InvalidRequest, PromptRefused, ModerationUnavailable, LimitExceeded, StorageUnavailable.
    """
    config = services().config
    shape = loop_shape_of(fields)
    check_texts(fields, config)
    if shape:
        check_loop_size(fields, shape, min(fields.LONGEST, longest_seconds(spec, config)))
    else:
        check_duration(fields, spec, config)
    check_controls(fields, spec, shape.generated_seconds if shape else fields.seconds)
    check_notes(fields, config)
    command = command_of(fields, spec, config)
    if shape:
        command = replace(command, duration_seconds=shape.seconds)
    with _charged(_prompts(fields.parts), command.n * command.generated_seconds, idempotency_key):
        yield command


@contextmanager
def admitted_text(fields: TextFields, idempotency_key: str | None = None) -> Iterator[GenerateCommand]:
    """Admit a request without an uploaded melody: for a model that it names, or for a performance. See `admitted`."""
    if fields.performance is None:
        with admitted(fields, services().catalog.get(fields.model_size), idempotency_key) as command:
            yield command
        return
    performance = fields.performance
    if isinstance(performance, str):
        performance = PerformanceFields.model_validate(services().performances.load(performance, caller().owner))
    command = performance_command(fields, performance)
    prompts = [prompt.text for change in performance.changes for prompt in change.prompts]
    with _charged(list(dict.fromkeys(prompts)), command.duration_seconds, idempotency_key):
        yield command


@contextmanager
def _charged(prompts: Sequence[str], seconds: float, idempotency_key: str | None) -> Iterator[None]:
    """Refuse prompts that are not allowed, and charge the caller for the block."""
    config = services().config
    for prompt in prompts:
        services().policy.require_allowed(prompt)

    def is_repeat() -> bool:
        return idempotency_key is not None and services().tasks.service.is_repeat(caller().owner, idempotency_key)

    g.admission = services().limits.admit(caller(), client_address(), seconds, is_repeat=is_repeat)
    at_response_end(g.admission.release)
    if config.server.log_prompts:
        for prompt in prompts:
            logger.info("Prompt: %s", prompt)
    try:
        yield
    except Canceled:
        raise  # The engine worked for this client, which chose not to wait.
    except BaseException:
        settle_charge(charged=False)
        raise


@contextmanager
def counted(prompts: Sequence[str] = ()) -> Iterator[None]:
    """Count a request of the current caller that generates no audio; refuse prompts that are not allowed.

    Raises as `admitted`.
    """
    with _charged(prompts, 0.0, None):
        yield


@contextmanager
def admitted_live(prompts: Sequence[str]) -> Iterator[None]:
    """Admit a live session of the current caller for the block, and charge its first second. Raises LimitExceeded.

    The charge is refunded if the block raises an error, unless `settle_charge` has decided otherwise.
    """
    g.admission = admission = services().limits.admit(caller(), client_address(), 1.0)
    if services().config.server.log_prompts:
        for prompt in prompts:
            logger.info("Prompt: %s", prompt)
    try:
        yield
    except BaseException:
        settle_charge(charged=False)
        raise
    finally:
        admission.release()


def settle_charge(*, charged: bool) -> None:
    """Decide whether the current request is charged to the daily quota, whatever happens to it from now on."""
    admission = cast(Admission, g.admission)
    if charged:
        admission.commit()
    else:
        admission.refund()


def charged_windows() -> list[RateLimitState]:
    """Return the limits that the current request was counted against; empty before admission and after a refund."""
    return cast(Admission, g.admission).states if "admission" in g else []


def reserve_stream_slot() -> None:
    """Reserve one of the server's stream slots until the response ends. Raises TooManyStreams, ShuttingDown."""
    at_response_end(services().stream_slots.acquire(connection_of(request.environ)).release)


def _prompts(parts: Sequence[Segment]) -> list[str]:
    """Return all texts of a request that describe music, each once."""
    texts = [text for part in parts for text in (part.description, part.negative_description) if text is not None]
    return list(dict.fromkeys(texts))
