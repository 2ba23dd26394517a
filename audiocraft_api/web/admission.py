"""The one way in for everything that makes audio, whichever door it comes through.

The order of the checks: key (`auth`), size and shape (`parsing`), then here: what the model can do and whether
the prompt is allowed; then how much the caller may have (`limits`): within a minute, at once, on a day; and last, by
the door itself, a place in the queue. What is refused after the day's quota was charged is given back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from flask import g

from audiocraft_api.config import Config
from audiocraft_api.core.errors import Canceled, InvalidRequest
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.model.catalog import ModelSpec
from audiocraft_api.web.auth import caller
from audiocraft_api.web.rate_headers import address
from audiocraft_api.web.schemas import StreamRequest
from audiocraft_api.web.services import services

logger = logging.getLogger(__name__)


@contextmanager
def admitted(fields: StreamRequest, spec: ModelSpec, idempotency_key: str | None = None) -> Iterator[GenerateCommand]:
    """Admit a parsed request of the current caller, and say in the service's words what it asks of a model.

    `idempotency_key` is that of a door to tasks: when it has made one already, no quota is asked of its repeat.
    The block hands the command on; when it fails, unless its client left, it costs nothing of the day's quota.
    Raises InvalidRequest, PromptRefused, ModerationUnavailable, LimitExceeded, StorageUnavailable.
    """
    config = services().config
    _check_size(fields, spec, config)
    services().policy.check(fields.prompt)

    def is_repeat() -> bool:
        return idempotency_key is not None and services().tasks.service.has_made(caller().owner, idempotency_key)

    g.admission = services().limits.admit(caller(), address(), fields.duration, is_repeat=is_repeat)
    g.admission_release = g.admission.release
    if config.server.log_prompts:
        logger.info("Prompt: %s", fields.prompt)
    command = GenerateCommand(
        prompt=fields.prompt,
        model=spec.name,
        duration_seconds=fields.duration,
        output_format=fields.output_format,
        temperature=fields.temperature,
        top_k=fields.top_k,
        top_p=fields.top_p,
        cfg_coef=fields.cfg_coef,
        seed=fields.seed,
        audio_owner=caller().owner if config.access.audio_requires_key else None,
    )
    try:
        yield command
    except Canceled:
        raise  # the work was done, and not by our choice in vain
    except BaseException:
        g.admission.refund()
        raise


def _check_size(fields: StreamRequest, spec: ModelSpec, config: Config) -> None:
    if len(fields.prompt) > config.limits.max_prompt_characters:
        sentence = f"prompt must have at most {config.limits.max_prompt_characters} characters on this server."
        raise InvalidRequest(sentence, {"prompt": [sentence]})
    if fields.duration > spec.max_duration_seconds:
        sentence = f"duration must be at most {spec.max_duration_seconds:g} for the model {spec.name}."
        raise InvalidRequest(sentence, {"duration": [sentence]})
    if fields.duration > config.limits.max_duration_seconds:
        sentence = f"duration must be at most {config.limits.max_duration_seconds:g} on this server."
        raise InvalidRequest(sentence, {"duration": [sentence]})
