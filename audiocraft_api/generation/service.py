"""The generation service: look in the cache, submit, await, convert, store.

Synchronous routes and tasks run every step; streams run all but the cache, and store only if asked to. Uses the engine,
the encoder and the store through their interfaces; knows neither Flask nor torch.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from audiocraft_api.audio import convert
from audiocraft_api.audio.analysis import analyze
from audiocraft_api.audio.finishing import finished
from audiocraft_api.audio.looping import LoopShape
from audiocraft_api.config import Config
from audiocraft_api.core.constants import MAX_SEED
from audiocraft_api.core.engine import Engine
from audiocraft_api.core.errors import AudioCraftError, StorageUnavailable
from audiocraft_api.core.observer import NULL_OBSERVER, Observer
from audiocraft_api.core.params import GenerationParams, Waveform
from audiocraft_api.core.request import GenerationResult
from audiocraft_api.core.separation import Separation, StemSeparation
from audiocraft_api.core.waiting import Waiter
from audiocraft_api.generation import stored_codes
from audiocraft_api.generation.cache.result_cache import ResultCache
from audiocraft_api.generation.candidates import FoundLoop, best_loop, candidates_of
from audiocraft_api.generation.command import (
    GenerateCommand,
    GeneratedBytes,
    GeneratedFile,
    Progress,
    StemFile,
)
from audiocraft_api.generation.continuation import with_input, without_input
from audiocraft_api.generation.streaming import AudioStream
from audiocraft_api.generation.submission import Submission
from audiocraft_api.generation.variations import commands_of, first_made, make_all
from audiocraft_api.generation.wording import with_wording
from audiocraft_api.storage.base import AudioStore

LOOP_MARGIN_SECONDS = 1.0  # around a loop while it is separated


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
        separation: StemSeparation,
        config: Config,
        cache: ResultCache | None = None,
        observer: Observer = NULL_OBSERVER,
    ) -> None:
        self._engine = engine
        self._store = store
        self._separation = separation
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
        saved: list[str] = []

        def save(made: GeneratedBytes) -> GeneratedFile:
            made = replace(made, recipe=made.recipe.timed_since(waiter.started))
            return self._save(made, command.audio_owner, saved)

        with self._deleted_after_error(saved):
            if not generated.variations:
                return save(generated)
            files = [save(made) if isinstance(made, GeneratedBytes) else made for made in generated.variations]
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
        result = self._finished(command, without_input(submission.request.result(), command))
        generated = self._encode(submission, result)
        return self._save(generated, command.audio_owner, [])

    def _make(self, command: GenerateCommand, waiter: Waiter, progress: Progress | None = None) -> GeneratedBytes:
        """Find or generate the audio of a command, or of each of its variations."""
        progress = progress or Progress()
        progress.num_requests = command.n * (command.candidates if command.loop else 1)
        progress.num_separations = command.n if command.stems else 0

        def make(single: GenerateCommand, waiter: Waiter) -> GeneratedBytes:
            generated = self._find_or_generate(single, waiter, progress)
            return replace(generated, recipe=generated.recipe.timed_since(waiter.started))

        if command.n == 1:
            return make(command, waiter)
        outcomes = make_all(commands_of(command), make, waiter)
        return replace(first_made(outcomes), variations=tuple(outcomes))

    def _save(self, made: GeneratedBytes, owner: str | None, saved: list[str]) -> GeneratedFile:
        """Store the audio and its stems; append the name of each file to `saved`."""
        extension = convert.ALL_FORMATS[made.recipe.format].extension

        def store(audio: bytes, codes: bytes | None = None) -> str:
            filename = self._store.save(audio, extension, owner, codes).filename
            saved.append(filename)
            return filename

        with self._observer.step("store"):
            filename = store(made.audio, made.codes)
            stems = {name: store(audio) for name, audio in made.stems.items()}
        stem_files = {name: StemFile(stem, self._store.url_for(stem)) for name, stem in stems.items()}
        return GeneratedFile(filename, self._store.url_for(filename), made.recipe, stems=stem_files)

    @contextmanager
    def _deleted_after_error(self, saved: list[str]) -> Iterator[None]:
        """Delete the files `saved` in the block if it fails, because no client learns their names."""
        try:
            yield
        except AudioCraftError:
            for filename in saved:
                with suppress(StorageUnavailable):  # the sweeper deletes it later
                    self._store.delete(filename)
            raise

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
        if command.stems:
            self._separation.prepare(command.model, waiter)
        loop: Mapping[str, Any] | None = None
        if shape := command.loop_shape:
            submission, found = self._looped(command, shape, waiter, progress)
            result, loop = found.result, found.report
        else:
            submission = self._submit(command, waiter)
            progress.requests.append(submission.request)
            result = self._await_result(submission, waiter)
        result = self._finished(command, result)
        separation = self._separated(submission, result, waiter, progress) if command.stems else None
        generated = self._encode(submission, result, separation)
        return replace(generated, recipe=replace(generated.recipe, loop=loop))

    def _looped(
        self, command: GenerateCommand, shape: LoopShape, waiter: Waiter, progress: Progress
    ) -> tuple[Submission, FoundLoop]:
        """Generate the candidates of a loop in one batch; return the submission of the first, and the best loop."""
        if command.seed is None:
            command = replace(command, seed=secrets.randbelow(MAX_SEED + 1))
        submissions: list[Submission] = []
        try:
            for candidate in candidates_of(command):
                submissions.append(self._submit(candidate, waiter))
                progress.requests.append(submissions[-1].request)
            results = [self._await_result(submission, waiter) for submission in submissions]
        except AudioCraftError:
            for submission in submissions:
                submission.request.cancel()
            raise
        with self._observer.step("loop"):
            timeout_seconds = self._convert_timeout_seconds(command)
            return submissions[0], best_loop(results, shape, waiter.raise_if_stopped, timeout_seconds)

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
            melody=command.followed,
            audio_prompt=command.audio_prompt,
            performance=command.performance,
        )
        asked = with_input(with_wording(params, command.wording))
        if shape := command.loop_shape:
            asked = replace(asked, duration_seconds=shape.generated_seconds)
        request = self._engine.submit(asked, deadline=waiter.deadline)
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

    def _finished(self, command: GenerateCommand, result: GenerationResult) -> GenerationResult:
        """Return the result with the waveform of the file. Trimmed audio has no codes, which would be longer."""
        timeout_seconds = self._convert_timeout_seconds(command)
        num_samples = result.waveform.shape[1]
        # A loop is finished as it is heard, between two others.
        waveform = np.tile(result.waveform, 3) if command.loop else result.waveform
        waveform = finished(waveform, result.sample_rate, command.finishing, timeout_seconds=timeout_seconds)
        if command.loop:
            waveform = waveform[:, num_samples : 2 * num_samples]
        has_codes = waveform.shape == result.waveform.shape
        return replace(result, waveform=waveform, codes=result.codes if has_codes else None)

    def _separated(
        self, submission: Submission, result: GenerationResult, waiter: Waiter, progress: Progress
    ) -> Separation:
        """Separate the finished audio into stems, which therefore add up to the file."""

        def advance(part_done: float) -> None:
            progress.separated[submission.request] = part_done

        margin = round(LOOP_MARGIN_SECONDS * result.sample_rate) if submission.command.loop else 0
        waveform = np.pad(result.waveform, ((0, 0), (margin, margin)), "wrap")  # stems of a loop are loops
        with self._observer.step("separate"):
            found = self._separation.separate(waveform, result.sample_rate, submission.command.model, waiter, advance)
        stems = {name: stem[:, margin : waveform.shape[1] - margin] for name, stem in found.stems.items()}
        return replace(found, stems=stems)

    def _encode(
        self, submission: Submission, result: GenerationResult, separation: Separation | None = None
    ) -> GeneratedBytes:
        """Measure and encode the finished waveform and its stems, with the recipe in the files' tags."""
        timeout_seconds = self._convert_timeout_seconds(submission.command)
        recipe = submission.recipe(result, separation.separator if separation else None)

        def encode(waveform: Waveform, stem: str | None = None) -> bytes:
            tags = recipe.tags(with_prompt=self._config.results.tag_prompts, stem=stem)
            return convert.encode(waveform, result.sample_rate, recipe.format, tags, timeout_seconds=timeout_seconds)

        with self._observer.step("convert"):
            if submission.command.analysis:
                measured = analyze(result.waveform, result.sample_rate, timeout_seconds=timeout_seconds)
                recipe = replace(recipe, analysis=measured.to_dict())
            audio = encode(result.waveform)
            stems = {name: encode(stem, name) for name, stem in separation.stems.items()} if separation else {}
        codes = stored_codes.to_bytes(result.codes) if self._config.storage.store_codes and result.codes else None
        return GeneratedBytes(audio, recipe, codes, stems=stems)

    def _convert_timeout_seconds(self, command: GenerateCommand) -> float:
        return self._config.audio.convert_timeout_seconds * command.time_factor
