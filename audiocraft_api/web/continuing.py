"""Continues audio that this server made, named by its task or its link."""

from __future__ import annotations

from dataclasses import replace
from typing import BinaryIO

from audiocraft_api.core.errors import AudioGone, InvalidRequest, NotFound
from audiocraft_api.core.params import seconds_of
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.generation.continuation import continued, with_codes
from audiocraft_api.generation.stored_codes import from_bytes
from audiocraft_api.storage.base import link_of, name_of
from audiocraft_api.web.auth import caller
from audiocraft_api.web.request_checks import check_segments_of_windows
from audiocraft_api.web.responses import AUDIO_GONE
from audiocraft_api.web.schemas.continue_from import ContinueFromFields
from audiocraft_api.web.schemas.generation import TextFields
from audiocraft_api.web.services import services


def continued_from(command: GenerateCommand, fields: TextFields) -> GenerateCommand:
    """Return the command with the audio that `continue_from` names; without that field, the command as it is.

    Raises NotFound (also for the audio of another caller), AudioGone, InvalidRequest, StorageUnavailable, Unavailable.
    """
    wanted = fields.continue_from
    if wanted is None:
        return command
    spec = services().catalog.get(command.model)
    try:
        wanted.part.check(spec.window_seconds)
        filename = _filename(wanted)
        with _opened(filename, wanted) as file:
            audio = services().uploads.decode(file, "audio", is_own=True)
        stored = services().store.codes_of(filename)
        audio = with_codes(audio, None if stored is None else from_bytes(stored))
        command = continued(
            command, audio, wanted.part, include_input=wanted.include_input, window_seconds=spec.window_seconds
        )
    except InvalidRequest as error:
        if "extend_stride" in error.errors:
            raise
        raise InvalidRequest(error.message, {"continue_from": [error.message]}) from error
    if spec.melody:
        check_segments_of_windows(fields, spec, seconds_of(command.audio_prompt))
    return replace(command, continued_url=services().store.url_for(filename))


def _filename(wanted: ContinueFromFields) -> str:
    """Return the name of the file in the store. Raises NotFound, AudioGone, InvalidRequest."""
    if wanted.task_id is None:
        owner = caller().owner if services().config.access.audio_requires_key else None
        return name_of(link_of(wanted.audio_url or ""), owner)
    task = services().tasks.service.get(wanted.task_id, caller().owner)
    if task.filename is None:
        raise InvalidRequest(f"The task in continue_from is {task.state} and has no audio. Name a completed task.")
    return task.filename


def _opened(filename: str, wanted: ContinueFromFields) -> BinaryIO:
    """Open the audio. That of a task existed, so it has been deleted if it is missing."""
    try:
        return services().store.open(filename).file
    except NotFound as error:
        if wanted.task_id is None:
            raise
        raise AudioGone(AUDIO_GONE) from error
