"""Admission: what a request must pass before it reaches the engine, and what it holds until its response ends.

Order of the checks: credential (`auth`), size and shape (`parsing`), then here: the model's limits, the prompt policy,
and the caller's limits: per minute, concurrent, per day. The endpoint itself reserves a request or stream slot last.
If anything fails after the daily quota was charged, the charge is refunded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from flask import g, request

from audiocraft_api.access.limits import Admission
from audiocraft_api.access.rate_limiter import RateLimitState
from audiocraft_api.config import Config
from audiocraft_api.core.errors import Canceled, InvalidRequest
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.model.catalog import ModelSpec
from audiocraft_api.web.auth import caller, client_address
from audiocraft_api.web.disconnect import connection_of
from audiocraft_api.web.lifetime import at_response_end
from audiocraft_api.web.schemas import StreamRequest
from audiocraft_api.web.services import services

logger = logging.getLogger(__name__)


@contextmanager
def admitted(fields: StreamRequest, spec: ModelSpec, idempotency_key: str | None = None) -> Iterator[GenerateCommand]:
    """Admit a validated request of the current caller and yield its command.

    The caller's concurrency slot is held until the response ends. The daily quota is charged, and refunded if the
    block raises anything but Canceled, unless `settle_charge` has decided otherwise. With `idempotency_key`, a request
    that repeats an accepted task is not charged.
    Raises InvalidRequest, PromptRefused, ModerationUnavailable, LimitExceeded, StorageUnavailable.
    """
    config = services().config
    _check_size(fields, spec, config)
    _check_controls(fields, spec)
    for prompt in _prompts(fields):
        services().policy.require_allowed(prompt)

    def is_repeat() -> bool:
        return idempotency_key is not None and services().tasks.service.is_repeat(caller().owner, idempotency_key)

    g.admission = services().limits.admit(caller(), client_address(), fields.duration, is_repeat=is_repeat)
    at_response_end(g.admission.release)
    if config.server.log_prompts:
        for prompt in _prompts(fields):
            logger.info("Prompt: %s", prompt)
    try:
        yield _command_of(fields, spec, config)
    except Canceled:
        raise  # The engine worked for this client, which chose not to wait.
    except BaseException:
        settle_charge(charged=False)
        raise


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


def _command_of(fields: StreamRequest, spec: ModelSpec, config: Config) -> GenerateCommand:
    return GenerateCommand(
        prompt=fields.prompt,
        model=spec.name,
        duration_seconds=fields.duration,
        output_format=fields.output_format,
        temperature=fields.temperature,
        top_k=fields.top_k,
        top_p=fields.top_p,
        cfg_coef=fields.cfg_coef,
        extend_stride_seconds=fields.extend_stride,
        negative_prompt=fields.negative_prompt,
        seed=fields.seed,
        audio_owner=caller().owner if config.access.audio_requires_key else None,
    )


def _prompts(fields: StreamRequest) -> list[str]:
    """Return all texts of a request that describe music."""
    return [fields.prompt] + ([] if fields.negative_prompt is None else [fields.negative_prompt])


def _check_size(fields: StreamRequest, spec: ModelSpec, config: Config) -> None:
    max_characters = config.limits.max_prompt_characters
    for name, prompt in (("prompt", fields.prompt), ("negative_prompt", fields.negative_prompt or "")):
        if len(prompt) > max_characters:
            raise _refusal(name, f"must have at most {max_characters} characters on this server")
    if fields.duration > spec.max_duration_seconds:
        raise _refusal("duration", f"must be at most {spec.max_duration_seconds:g} for the model {spec.name}")
    if fields.duration > config.limits.max_duration_seconds:
        raise _refusal("duration", f"must be at most {config.limits.max_duration_seconds:g} on this server")


def _check_controls(fields: StreamRequest, spec: ModelSpec) -> None:
    """Raise InvalidRequest for a control that would have no effect or that the model cannot honor."""
    if fields.duration > spec.window_seconds <= fields.extend_stride:
        raise _refusal("extend_stride", f"must be less than {spec.window_seconds:g} for the model {spec.name}")
    if fields.negative_prompt is not None and fields.cfg_coef == 1:
        raise _refusal("negative_prompt", "has no effect with a cfg_coef of 1; use a higher cfg_coef")


def _refusal(field: str, rule: str) -> InvalidRequest:
    sentence = f"{field} {rule}."
    return InvalidRequest(sentence, {field: [sentence]})
