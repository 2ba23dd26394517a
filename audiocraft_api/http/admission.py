"""The one way in for everything that makes audio, whichever door it comes through.

The order of the checks: key (`auth`), size and shape (`parsing`), then here: what the model can do and whether
the prompt is allowed; and last, by the door itself, a place in the queue. Nothing costs anything before it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from audiocraft_api.errors import InvalidRequest
from audiocraft_api.http.auth import caller
from audiocraft_api.http.schemas import StreamRequest
from audiocraft_api.http.services import services
from audiocraft_api.model.catalog import ModelSpec
from audiocraft_api.service.generation import GenerateCommand

logger = logging.getLogger(__name__)


@contextmanager
def admitted(fields: StreamRequest, spec: ModelSpec) -> Iterator[GenerateCommand]:
    """Admit a parsed request of the current caller, and say in the service's words what it asks of a model.

    The block hands the command on. Raises InvalidRequest, PromptRefused, ModerationUnavailable.
    """
    config = services().config
    _check_duration(fields, spec)
    services().policy.check(fields.prompt)
    if config.log_prompts:
        logger.info("Prompt: %s", fields.prompt)
    yield GenerateCommand(
        prompt=fields.prompt,
        model=spec.name,
        duration_seconds=fields.duration,
        output_format=fields.output_format,
        temperature=fields.temperature,
        top_k=fields.top_k,
        top_p=fields.top_p,
        cfg_coef=fields.cfg_coef,
        seed=fields.seed,
        audio_owner=caller().owner if config.audio_requires_key else None,
    )


def _check_duration(fields: StreamRequest, spec: ModelSpec) -> None:
    if fields.duration > spec.max_duration_seconds:
        sentence = f"duration must be at most {spec.max_duration_seconds:g} for the model {spec.name}."
        raise InvalidRequest(sentence, {"duration": [sentence]})
