"""The one generation service: submit → await → convert → store.

Every door (synchronous route, task, stream) runs these steps. Knows the engine, the converter and the store by their
interfaces; knows neither Flask nor torch.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from audiocraft_api.audio import convert
from audiocraft_api.config import Config
from audiocraft_api.core.constants import MAX_SEED
from audiocraft_api.core.engine import Engine
from audiocraft_api.core.errors import ClientDisconnected, DeadlineExceeded
from audiocraft_api.core.observer import Observer
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.request import EngineRequest, GenerationResult
from audiocraft_api.generation.command import GenerateCommand, GeneratedBytes, GeneratedFile
from audiocraft_api.generation.recipe import Recipe, details_of
from audiocraft_api.storage.base import AudioStore

if TYPE_CHECKING:
    from audiocraft_api.generation.cache.base import CachedResult
    from audiocraft_api.generation.cache.result_cache import ResultCache

CLIENT_POLL_SECONDS = 0.1

T = TypeVar("T", bound="HasRecipe")


@dataclass(frozen=True, eq=False)
class Submission:
    """A command that the engine has taken, with all its parameters resolved."""

    command: GenerateCommand
    params: GenerationParams
    request: EngineRequest
    started: float  # time.monotonic()


class HasRecipe(Protocol):
    """What both have: `GeneratedFile` and `GeneratedBytes`."""

    @property
    def recipe(self) -> Recipe: ...


class Generation(Protocol):
    """What the synchronous routes ask for, wherever the audio is made."""

    def generate_file(self, command: GenerateCommand, client_gone: Callable[[], bool]) -> GeneratedFile:
        """Generate and store. Raises what ended it, Canceled, DeadlineExceeded."""

    def generate_bytes(self, command: GenerateCommand, client_gone: Callable[[], bool]) -> GeneratedBytes:
        """Generate and return the encoded audio. Raises as `generate_file`."""


@dataclass(frozen=True, eq=False)
class Way(Generic[T]):
    """One way for audio to be answered, as a file or as bytes: what the result cache need not know."""

    make: Callable[[Callable[[], bool]], T]  # anew; given whether the client is gone
    store: Callable[[T], str]  # once more, under a name of its own
    reuse: Callable[[CachedResult], T]  # raises NotFound when the file is gone


class GenerationService:
    """Runs generations from a validated command to audio; `results` answers what was asked before."""

    def __init__(
        self,
        engine: Engine,
        store: AudioStore,
        config: Config,
        results: ResultCache | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._config = config
        self._results = results
        self._observer = observer or Observer()

    def generate_file(
        self,
        command: GenerateCommand,
        client_gone: Callable[[], bool],
        *,
        deadline_seconds: float | None = None,
        watch: Callable[[EngineRequest], None] = lambda _request: None,
    ) -> GeneratedFile:
        """Generate and store, within `deadline_seconds`, by default those of a synchronous request.

        `watch` is shown the engine's request, where there is one. Raises what the engine, the converter or the store
        raises, Canceled, DeadlineExceeded.
        """
        deadline_seconds = deadline_seconds or self._config.engine.request_deadline_seconds
        started, owner = time.monotonic(), command.audio_owner

        def make(client_gone: Callable[[], bool]) -> GeneratedFile:
            submission = self.submit(command, deadline_seconds, started)
            watch(submission.request)
            return self._save(submission, self.await_result(submission, client_gone))

        def store(made: GeneratedFile) -> str:
            return self._store.copy(made.filename, owner).filename

        def reuse(known: CachedResult) -> GeneratedFile:
            filename = self._store.copy(known.filename, owner).filename
            return GeneratedFile(filename, self._store.url_for(filename), _known_recipe(known, started))

        return self._answer(command, Way(make, store, reuse), client_gone, started + deadline_seconds)

    def generate_bytes(self, command: GenerateCommand, client_gone: Callable[[], bool]) -> GeneratedBytes:
        """Generate and return the encoded audio. Raises as `generate_file`."""
        deadline_seconds = self._config.engine.request_deadline_seconds
        started = time.monotonic()

        def make(client_gone: Callable[[], bool]) -> GeneratedBytes:
            submission = self.submit(command, deadline_seconds, started)
            audio, recipe = self._encode(submission, self.await_result(submission, client_gone))
            return GeneratedBytes(audio, recipe.timed_since(started))

        def store(made: GeneratedBytes) -> str:
            extension = convert.FORMATS[command.output_format].extension
            return self._store.save(made.audio, extension, command.audio_owner).filename

        def reuse(known: CachedResult) -> GeneratedBytes:
            with self._store.open(known.filename).file as file:
                return GeneratedBytes(file.read(), _known_recipe(known, started))

        return self._answer(command, Way(make, store, reuse), client_gone, started + deadline_seconds)

    def submit(
        self, command: GenerateCommand, deadline_seconds: float | None = None, started: float | None = None
    ) -> Submission:
        """Resolve the seed and hand the command to the engine.

        It may take `deadline_seconds`, by default those of a synchronous request, since `started`, by default now
        (`time.monotonic()`). Raises QueueFull, ShuttingDown.
        """
        started = time.monotonic() if started is None else started
        params = GenerationParams(
            model=command.model,
            description=command.prompt,
            duration_seconds=command.duration_seconds,
            seed=secrets.randbelow(MAX_SEED + 1) if command.seed is None else command.seed,
            temperature=command.temperature,
            top_k=command.top_k,
            top_p=command.top_p,
            cfg_coef=command.cfg_coef,
            melody=command.melody,
        )
        deadline = started + (deadline_seconds or self._config.engine.request_deadline_seconds)
        request = self._engine.submit(params, deadline=deadline)
        self._observer.generation_started(request)
        return Submission(command, params, request, started)

    def await_result(self, submission: Submission, client_gone: Callable[[], bool]) -> GenerationResult:
        """Wait for the engine; stop it when the client leaves (Canceled) or the deadline passes (DeadlineExceeded)."""
        request = submission.request
        while not request.wait(CLIENT_POLL_SECONDS):
            # The engine checks both while it decodes; a request still waiting for its turn is checked here.
            if client_gone():
                request.cancel()
                raise ClientDisconnected
            if request.deadline is not None and time.monotonic() >= request.deadline:
                request.cancel()
                deadline_seconds = request.deadline - submission.started
                raise DeadlineExceeded(
                    f"The generation did not finish within {deadline_seconds:.6g} seconds; "
                    "ask for less audio or try again later."
                )
        return request.result()

    def recipe(self, submission: Submission, result: GenerationResult) -> Recipe:
        """Tell what a result is and how it was made."""
        output_format = submission.command.output_format
        return Recipe(
            format=output_format,
            sample_rate=convert.FORMATS[output_format].sample_rate or result.sample_rate,
            duration_seconds=result.waveform.shape[1] / result.sample_rate,
            generation_seconds=time.monotonic() - submission.started,
            seed=submission.params.seed,
            model=result.model,
            revision=result.revision,
            details=details_of(
                submission.params, result.revision, result.precision, output_format, self._config.engine.kind
            ),
        )

    def _answer(self, command: GenerateCommand, way: Way[T], client_gone: Callable[[], bool], until: float) -> T:
        return self._results.answer(command, way, client_gone, until) if self._results else way.make(client_gone)

    def _save(self, submission: Submission, result: GenerationResult) -> GeneratedFile:
        audio, recipe = self._encode(submission, result)
        with self._observer.step("store"):
            stored = self._store.save(audio, convert.FORMATS[recipe.format].extension, submission.command.audio_owner)
        recipe = recipe.timed_since(submission.started)
        return GeneratedFile(stored.filename, self._store.url_for(stored.filename), recipe)

    def _encode(self, submission: Submission, result: GenerationResult) -> tuple[bytes, Recipe]:
        """Return the file's bytes, which hold the recipe, and the recipe."""
        recipe = self.recipe(submission, result)
        with self._observer.step("convert"):
            audio = convert.encode(
                result.waveform,
                result.sample_rate,
                recipe.format,
                recipe.tags(with_prompt=self._config.results.tag_prompts),
                timeout_seconds=self._config.audio.convert_timeout_seconds,
            )
        return audio, recipe


def _known_recipe(known: CachedResult, started: float) -> Recipe:
    return replace(Recipe.from_answer(known.answer), is_cached=True).timed_since(started)
