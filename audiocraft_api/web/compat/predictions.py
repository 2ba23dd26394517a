"""Predictions of Replicate and Cog: the input of meta/musicgen, submitted as a task."""

from __future__ import annotations

import base64
import binascii
import io
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, BinaryIO, cast

from flask import request

from audiocraft_api.core.errors import InvalidAudio, InvalidMelody, InvalidRequest
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.generation.continuation import Part, continued
from audiocraft_api.tasks.prediction import PREDICTION, prediction_json
from audiocraft_api.tasks.task import Task
from audiocraft_api.web.admission import admitted
from audiocraft_api.web.compat.files import open_file
from audiocraft_api.web.compat.translation import Translation, model_named, refusal, renamed, request_of
from audiocraft_api.web.lifetime import at_response_end
from audiocraft_api.web.parsing import read_json_object
from audiocraft_api.web.request_headers import parse_idempotency_key
from audiocraft_api.web.services import services
from audiocraft_api.web.task_submission import run_as_task

INPUT = Translation(
    fields={
        "prompt": "prompt",
        "model_version": "model_size",
        "duration": "duration",
        "temperature": "temperature",
        "top_k": "top_k",
        "top_p": "top_p",
        "classifier_free_guidance": "cfg_coef",
        "output_format": "output_format",
        "seed": "seed",
    },
    accepted={"multi_band_diffusion": (False,)},
)
PART_NAMES = {"start": "continuation_start", "end": "continuation_end"}
OPEN_ENDED = ("seed", "continuation_end")  # of which -1 is as good as null
DEFAULT_SECONDS = 8.0
DEFAULT_MELODY_MODEL = "medium"
DATA_URL = re.compile(r"data:[^,]{0,200};base64,(.*)", re.DOTALL)
MAX_BODY_BYTES = 8 * 2**20  # a body of JSON is in memory, unlike an uploaded file


def read_prediction() -> dict[str, Any]:
    """Return the body of a request for a prediction, which may contain a recording as a data URL.

    The recording of a large body is moved to a temporary file, as other uploads are. Until then, the body occupies one
    of the slots for requests that wait, so that no more of them are in memory. Raises QueueFull before it is read.
    """
    audio = services().config.audio
    if (request.content_length or 0) <= audio.max_json_bytes:
        return read_json_object()
    with services().request_slots.acquire():
        body = read_json_object(max_bytes=min(audio.max_upload_bytes, MAX_BODY_BYTES))
        given = body.get("input")
        if isinstance(given, dict) and isinstance(value := given.get("input_audio"), str):
            file = given["input_audio"] = tempfile.TemporaryFile()  # noqa: SIM115  closed with the response
            at_response_end(file.close)
            file.write(_decoded(value))
            file.seek(0)
        return body


def predict(body: Mapping[str, Any], model: str | None, wait_seconds: float, key: str | None = None) -> Task:
    """Submit a prediction and wait for its end for `wait_seconds`. `model` is that of an input that names none.

    `key` is an idempotency key in place of the header's. Raises InvalidRequest and as `run_as_task`.
    """
    given = body.get("input")
    if not isinstance(given, dict):
        raise refusal("input", "must be an object.")
    key = key or parse_idempotency_key()
    webhook, events = body.get("webhook"), body.get("webhook_events_filter") or ["completed"]
    if not (webhook is None or isinstance(webhook, str)):
        raise refusal("webhook", "must be a URL.")
    if not isinstance(events, list) or "completed" not in events:
        webhook = None  # there are no webhooks for other events
    given = {name: value for name, value in given.items() if name not in OPEN_ENDED or value != -1}
    names = {**PART_NAMES, **INPUT.names_of(given), "webhook_url": "webhook"}
    view = PREDICTION if webhook else None
    with renamed(names), _admitted(given, model, key) as command:
        return run_as_task(command, wait_seconds, webhook, view=view, idempotency_key=key)


def shown(task: Task) -> dict[str, Any]:
    """Return a task as a prediction."""
    return prediction_json(task, services().store)


@contextmanager
def _admitted(given: dict[str, Any], model: str | None, key: str | None) -> Iterator[GenerateCommand]:
    audio, is_continuation = _audio_of(given), given.get("continuation") is True
    found = {"duration": DEFAULT_SECONDS, **INPUT.fields_of(given)}
    found.setdefault("model_size", model)
    follows_melody = audio is not None and not is_continuation
    if follows_melody and found["model_size"] is None:
        found["model_size"] = DEFAULT_MELODY_MODEL
    fields = request_of(found)
    catalog = services().catalog
    spec = catalog.melody_checkpoint(fields.model_size) if follows_melody else catalog.get(fields.model_size)
    part = Part(_seconds(given, "continuation_start"), _seconds(given, "continuation_end"))
    if is_continuation:
        if audio is None:
            raise refusal("input_audio", "is required for a continuation.")
        part.check(spec.window_seconds)
    with admitted(fields, spec, key) as command:
        if audio is None:
            yield command
            return
        with services().request_slots.acquire():  # while the recording waits for a decoder
            try:
                uploads = services().uploads
                melody = uploads.decode_melody(audio) if follows_melody else None
                recording = None if follows_melody else uploads.decode(audio, "audio")
            except (InvalidMelody, InvalidAudio) as error:
                raise InvalidRequest(error.message, {"input_audio": [error.message]}) from error
        if recording is None:
            yield replace(command, melody=melody)
        else:
            yield continued(command, recording, part, include_input=True, window_seconds=spec.window_seconds)


def _seconds(given: Mapping[str, Any], name: str) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise refusal(name, "must be a number of seconds, at least 0.")
    return float(value)


def _audio_of(given: Mapping[str, Any]) -> BinaryIO | None:
    """Return the recording in an input: a data URL or a file of the client. The server requests no other addresses.

    Raises InvalidRequest, NotFound, StorageUnavailable.
    """
    value = given.get("input_audio")
    if value is None:
        return None
    if isinstance(value, io.IOBase):  # see `read_prediction`
        return cast(BinaryIO, value)
    file = open_file(value) if isinstance(value, str) else None
    if file is None:
        return io.BytesIO(_decoded(value))
    at_response_end(file.close)
    return file


def _decoded(value: object) -> bytes:
    """Return the content of a data URL. Raises InvalidRequest."""
    found = DATA_URL.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise refusal(
            "input_audio", "must be a data URL with base64, or the URL of a file of /v1/files. Others are not fetched."
        )
    try:
        return base64.b64decode(found[1], validate=True)
    except (binascii.Error, ValueError):
        raise refusal("input_audio", "is not valid base64.") from None


def model_of(*names: str | None) -> str | None:
    """Return the first name that is a model of this server, or None."""
    known = {spec.name for spec in services().catalog}
    return next((model_named(name) for name in names if name and model_named(name) in known), None)


def no_model(name: str) -> InvalidRequest:
    """Return the error for a model that is not MusicGen's."""
    return refusal("model", f"must be meta/musicgen or a model of this server, not {name}.")
