"""A command that the engine has accepted. Knows neither the encoder nor the store."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from audiocraft_api.audio.convert import ALL_FORMATS
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.request import EngineRequest, GenerationResult
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.generation.continuation import continuation_details
from audiocraft_api.generation.recipe import Recipe, finishing_details, recipe_details, wording_details


@dataclass(frozen=True, eq=False)
class Submission:
    """A command that the engine has accepted, with every parameter resolved."""

    command: GenerateCommand
    params: GenerationParams  # as requested: the duration is that of the new audio
    request: EngineRequest
    engine_kind: str  # the setting
    started: float  # `time.monotonic()`

    def recipe(self, result: GenerationResult, separator: str | None = None) -> Recipe:
        """Return the recipe of the engine's result, whose waveform is that of the file.

        `separator` has separated it into stems.
        """
        output_format = self.command.output_format
        return Recipe(
            format=output_format,
            sample_rate=ALL_FORMATS[output_format].sample_rate or result.sample_rate,
            duration_seconds=result.waveform.shape[1] / result.sample_rate,
            generation_seconds=time.monotonic() - self.started,
            seed=self.params.seed,
            model=result.model,
            revision=result.revision,
            details=recipe_details(
                self.params,
                result.revision,
                result.precision,
                output_format,
                self.engine_kind,
                melody=self.command.melody,
                continuation=continuation_details(self.command, result.codec),
                added=self._added_details(separator),
            ),
        )

    def _added_details(self, separator: str | None) -> dict[str, Any]:
        """Return what the service, rather than the engine, adds to the request and to the audio."""
        command = self.command
        wished = {"bpm": command.bpm, "key": command.key, "time_signature": command.time_signature}
        loop = {"loop": True, "bars": command.bars, "candidates": command.candidates} if command.loop else {}
        stems = {} if separator is None else {"stems": True, "separator": separator}
        notes = {} if command.notes is None else {"notes": command.notes}
        worded = wording_details(wished, command.wording)
        return notes | worded | finishing_details(command.finishing) | loop | stems
