"""Responds with audio as bytes, which all families do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flask import Response, request

from audiocraft_api.audio.convert import ALL_FORMATS
from audiocraft_api.core.errors import DeadlineExceeded, IdempotencyConflict, error_of
from audiocraft_api.core.waiting import Waiter
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.storage.base import link_of
from audiocraft_api.web.admission import admitted_text
from audiocraft_api.web.blueprints.streams import stream_audio
from audiocraft_api.web.compat.translation import CompatRequest
from audiocraft_api.web.continuing import continued_from
from audiocraft_api.web.disconnect import client_gone
from audiocraft_api.web.request_headers import parse_idempotency_key
from audiocraft_api.web.responses import stored_audio
from audiocraft_api.web.services import services
from audiocraft_api.web.task_submission import run_as_task


@dataclass(frozen=True)
class Audio:
    """Encoded audio, and what it is: the fields of `Recipe.to_dict`, and its link if it is stored."""

    content: bytes
    about: dict[str, Any]
    link: str | None = None


def make_audio(fields: CompatRequest, *, store: bool = False) -> Audio:
    """Generate audio while its client waits; `store` also keeps it. With an `Idempotency-Key`, a task does both.

    Raises as `admitted_text` and `generate_bytes`, NotFound, AudioGone.
    """
    key = parse_idempotency_key()
    with admitted_text(fields, key) as command:
        command = continued_from(command, fields)
        seconds = services().config.engine.request_deadline_seconds * command.time_factor
        if key is not None:
            return _made_by_task(command, seconds)
        with services().request_slots.acquire():
            waiter = Waiter(client_gone(request.environ), seconds)
            if store:
                file = services().generation.generate_file(command, waiter)
                return Audio(stored_audio(file.filename), file.recipe.to_dict(), link_of(file.filename))
            generated = services().generation.generate_bytes(command, waiter)
            return Audio(generated.audio, generated.recipe.to_dict())


def audio_response(fields: CompatRequest, *, stream: bool = False, store: bool = False) -> Response:
    """Generate audio and respond with it: when it is ready, or if `stream`, as it is generated. `store` keeps it."""
    if stream:
        with admitted_text(fields) as command:
            return stream_audio(continued_from(command, fields))
    audio = make_audio(fields, store=store)
    response = Response(audio.content, mimetype=ALL_FORMATS[fields.output_format].media_type)
    response.headers.update(audio_headers(audio))
    return response


def audio_headers(audio: Audio) -> dict[str, str]:
    """Return the headers that describe audio, as `/generate-stream` has them, and ElevenLabs' for stored audio."""
    about = audio.about
    return ({"song-id": audio.link} if audio.link else {}) | {
        "X-Audio-Seed": str(about["seed"]),
        "X-Audio-Model": about["model"],
        "X-Audio-Revision": about["revision"],
        "X-Audio-Sample-Rate": str(about["sample_rate"]),
        "X-Audio-Duration": f"{about['duration']:g}",
        "Cache-Control": "no-store",
    }


def _made_by_task(command: GenerateCommand, seconds: float) -> Audio:
    task = run_as_task(command, seconds)
    if task.state == "failed":
        raise error_of(task.error_code or "", task.error or "")
    if task.state == "canceled":
        raise IdempotencyConflict("The request with this Idempotency-Key was canceled. Send another key.")
    if task.result is None:
        raise DeadlineExceeded("The audio was not ready in time. Repeat the request with the same Idempotency-Key.")
    filename = task.result["filename"]
    return Audio(stored_audio(filename), task.result, link_of(filename))
