"""The generation service: look in the cache, submit, await, convert, store.

Synchronous routes and tasks run every step; streams run all but the cache, and store only if asked to. Uses the engine,
the encoder and the store through their interfaces; knows neither Flask nor torch.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from audiocraft_api.audio import convert
from audiocraft_api.audio.analysis import analyze
from audiocraft_api.audio.finishing import finished
from audiocraft_api.config import Config
from audiocraft_api.core.constants import MAX_SEED
from audiocraft_api.core.engine import Engine
from audiocraft_api.core.errors import AudioCraftError, StorageUnavailable
from audiocraft_api.core.observer import NULL_OBSERVER, Observer
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.request import GenerationResult
from audiocraft_api.core.waiting import Waiter
from audiocraft_api.generation import stored_codes
from audiocraft_api.generation.cache.result_cache import ResultCache
from audiocraft_api.generation.command import (
    FailedVariation,
    GenerateCommand,
    GeneratedBytes,
    GeneratedFile,
    Progress,
)
from audiocraft_api.generation.continuation import with_input, without_input
from audiocraft_api.generation.streaming import AudioStream
from audiocraft_api.generation.submission import Submission
from audiocraft_api.generation.variations import commands_of, first_made, make_all
from audiocraft_api.generation.wording import with_wording
from audiocraft_api.storage.base import AudioStore


class Generation(Protocol):
    """What the routes need, whether this process generates the audio or a worker elsewhere does."""

    def generate_file(self, command: GenerateCommand, waiter: Waiter) -> GeneratedFile:
        """Generate audio and store it. Raises the error that ended the generation, or as `Waiter.raise_if_stopped`."""

    def generate_bytes(self, command: GenerateCommand, waiter: Waiter) -> GeneratedBytes:
        """Generate audio and return it encoded. Raises as `generate_file`."""

    def stream(self, command: GenerateCommand) -> AudioStream:
        """Start a generation whose audio is sent as it is generated. Raises QueueFull, ShuttingDown, NotStreamable."""

    def store_stream(self, stream: AudioStream, output_format: str) -> GeneratedFile:
        """Store the audio of a finished stream. Raises ConversionFailed, StorageUnavailable, NotStreamable."""


class GenerationService:
    """Runs generations in this process, from a validated command to audio."""

    def __init__(
        self,
        engine: Engine,
        store: AudioStore,
        config: Config,
        cache: ResultCache | None = None,
        observer: Observer = NULL_OBSERVER,
    ) -> None:
        self._engine = engine
        self._store = store
        self._config = config
        self._cache = cache
        self._observer = observer

    def generate_file(
        self, command: GenerateCommand, waiter: Waiter, progress: Progress | None = None
    ) -> GeneratedFile:
        """Generate audio and store it; `progress` reports how far the engine is.

        Raises the errors of the engine, the encoder and the store, or as `Waiter.raise_if_stopped`.
        """
        generated = self._make(command, waiter, progress)

        def save(made: GeneratedBytes) -> GeneratedFile:
            return self._save(replace(made, recipe=made.recipe.timed_since(waiter.started)), command.audio_owner)

        if not generated.variations:
            return save(generated)
        files: list[GeneratedFile | FailedVariation] = []
        try:
            for variation in generated.variations:
                files.append(save(variation) if isinstance(variation, GeneratedBytes) else variation)
        except AudioCraftError:
            for file in files:
                if isinstance(file, GeneratedFile):
                    with suppress(StorageUnavailable):  # the sweeper deletes it later
                        self._store.delete(file.filename)
            raise
        return replace(first_made(files), variations=tuple(files))

    def generate_bytes(self, command: GenerateCommand, waiter: Waiter) -> GeneratedBytes:
        """Generate audio and return it encoded. Raises as `generate_file`, except for errors of the store."""
        return self._make(command, waiter)

    def stream(self, command: GenerateCommand) -> AudioStream:
        """Start a generation whose audio is sent as it is generated. Raises QueueFull, ShuttingDown."""
        waiter = Waiter(timeout_seconds=self._config.engine.request_deadline_seconds * command.time_factor)
        submission = self._submit(command, waiter)
        return AudioStream(submission, self._config.audio.convert_timeout_seconds, self._engine.queue_place)

    def store_stream(self, stream: AudioStream, output_format: str) -> GeneratedFile:
        """Encode and store the audio of a finished stream, with the recipe in the file's tags.

        Raises ConversionFailed, StorageUnavailable.
        """
        command = replace(stream.submission.command, output_format=output_format)
        submission = replace(stream.submission, command=command)
        generated = self._encode(submission, without_input(submission.request.result(), command))
        return self._save(generated, command.audio_owner)

    def _make(self, command: GenerateCommand, waiter: Waiter, progress: Progress | None = None) -> GeneratedBytes:
        """Find or generate the audio of a command, or of each of its variations."""
        progress = progress or Progress()
        progress.num_variations = command.n

        def make(single: GenerateCommand, waiter: Waiter) -> GeneratedBytes:
            generated = self._find_or_generate(single, waiter, progress)
            return replace(generated, recipe=generated.recipe.timed_since(waiter.started))

        if command.n == 1:
            return make(command, waiter)
        outcomes = make_all(commands_of(command), make, waiter)
        return replace(first_made(outcomes), variations=tuple(outcomes))

    def _save(self, made: GeneratedBytes, owner: str | None) -> GeneratedFile:
        with self._observer.step("store"):
            extension = convert.ALL_FORMATS[made.recipe.format].extension
            stored = self._store.save(made.audio, extension, owner, made.codes)
        return GeneratedFile(stored.filename, self._store.url_for(stored.filename), made.recipe)

    def _find_or_generate(self, command: GenerateCommand, waiter: Waiter, progress: Progress) -> GeneratedBytes:
        if self._cache is None or (key := self._cache.key(command)) is None:
            return self._generate(command, waiter, progress)
        if cached := self._cache.get(key):
            return cached
        with self._cache.single_flight(key, waiter) as cached:
            if cached:
                return cached
            generated = self._generate(command, waiter, progress)
            self._cache.put(key, generated)
            return generated

    def _generate(self, command: GenerateCommand, waiter: Waiter, progress: Progress) -> GeneratedBytes:
        submission = self._submit(command, waiter)
        progress.requests.append(submission.request)
        return self._encode(submission, self._await_result(submission, waiter))

    def _submit(self, command: GenerateCommand, waiter: Waiter) -> Submission:
        """Resolve the seed and submit the command to the engine."""
        params = GenerationParams(
            model=command.model,
            description=command.prompt,
            duration_seconds=command.duration_seconds,
            seed=secrets.randbelow(MAX_SEED + 1) if command.seed is None else command.seed,
            temperature=command.temperature,
            top_k=command.top_k,
            top_p=command.top_p,
            cfg_coef=command.cfg_coef,
            extend_stride_seconds=command.extend_stride_seconds,
            negative_description=command.negative_prompt,
            segments=command.segments,
            melody=command.melody,
            audio_prompt=command.audio_prompt,
            performance=command.performance,
        )
        request = self._engine.submit(with_input(with_wording(params, command.wording)), deadline=waiter.deadline)
        self._observer.generation_started(request)
        return Submission(command, params, request, self._config.engine.kind, waiter.started)

    def _await_result(self, submission: Submission, waiter: Waiter) -> GenerationResult:
        """Wait for the engine; stop it when the waiter has a reason to stop."""
        # The engine checks the deadline only while it decodes; the waiter also ends requests that are still queued.
        try:
            waiter.wait_for(submission.request.wait)
        except AudioCraftError:
            submission.request.cancel()
            raise
        return without_input(submission.request.result(), submission.command)

    def _encode(self, submission: Submission, result: GenerationResult) -> GeneratedBytes:
        """Finish, measure and encode the waveform, with the recipe in the file's tags."""
        timeout_seconds = self._config.audio.convert_timeout_seconds * submission.command.time_factor
        with self._observer.step("convert"):
            result = self._finished(submission.command, result, timeout_seconds)
            recipe = submission.recipe(result)
            if submission.command.analysis:
                measured = analyze(result.waveform, result.sample_rate, timeout_seconds=timeout_seconds)
                recipe = replace(recipe, analysis=measured.to_dict())
            audio = convert.encode(
                result.waveform,
                result.sample_rate,
                recipe.format,
                recipe.tags(with_prompt=self._config.results.tag_prompts),
                timeout_seconds=timeout_seconds,
            )
        codes = stored_codes.to_bytes(result.codes) if self._config.storage.store_codes and result.codes else None
        return GeneratedBytes(audio, recipe, codes)

    def _finished(self, command: GenerateCommand, result: GenerationResult, timeout_seconds: float) -> GenerationResult:
        """Return the result with the waveform of the file. Trimmed audio has no codes, which would be longer."""
        waveform = finished(result.waveform, result.sample_rate, command.finishing, timeout_seconds=timeout_seconds)
        has_codes = waveform.shape == result.waveform.shape
        return replace(result, waveform=waveform, codes=result.codes if has_codes else None)
