"""Adds the melody of a form to its command."""

from __future__ import annotations

from dataclasses import replace
from typing import BinaryIO, cast

from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.web.schemas.forms import FormFields
from audiocraft_api.web.services import services


def with_melody(command: GenerateCommand, fields: FormFields) -> GenerateCommand:
    """Return the command with the form's file, if it has one: a recording or a MIDI file.

    Raises as `UploadDecoder.decode_melody`.
    """
    if fields.melody is None:
        return command
    return replace(command, melody=services().uploads.decode_melody(cast(BinaryIO, fields.melody.stream)))
