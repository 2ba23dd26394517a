"""The one generation service: submit → await → convert → store.

Every door (synchronous route, task, stream) runs these steps. Knows the engine, the converter and the store by their
interfaces; knows neither Flask nor torch.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from audiocraft_api.config import Config
from audiocraft_api.constants import DEFAULT_CFG_COEF, DEFAULT_TOP_K, MAX_SEED
from audiocraft_api.engine.base import Engine
from audiocraft_api.engine.params import AudioInput, GenerationParams
from audiocraft_api.engine.request import EngineRequest, GenerationResult
from audiocraft_api.errors import Canceled, DeadlineExceeded
from audiocraft_api.service import convert
from audiocraft_api.service.observer import Observer
from audiocraft_api.service.storage.base import AudioStore

CLIENT_POLL_SECONDS = 0.1


@dataclass(frozen=True, eq=False)
class GenerateCommand:
    """What a client asks for, validated: `model` is a checkpoint's public name, `output_format` one of `convert.FORMATS`."""

    prompt: str
    model: str
    duration_seconds: float
    output_format: str = "wav"
    temperature: float = 1.0
    top_k: int = DEFAULT_TOP_K
    top_p: float = 0.0
    cfg_coef: float = DEFAULT_CFG_COEF
    seed: int | None = None
    melody: AudioInput | None = None
    audio_owner: str | None = None  # who alone may fetch the audio; None is everybody who knows its link


@dataclass(frozen=True, eq=False)
class Submission:
    """A command that the engine has taken, with all its parameters resolved."""

    command: GenerateCommand
    params: GenerationParams
    request: EngineRequest
    started: float  # time.monotonic()


@dataclass(frozen=True)
class Recipe:
    """What was made and how; in every answer."""

    format: str
    sample_rate: int  # Hz, of the file
    duration_seconds: float  # of the audio really made
    generation_seconds: float
    seed: int
    model: str
    revision: str


@dataclass(frozen=True)
class GeneratedFile:
    """Audio in the store."""

    filename: str
    url: str
    recipe: Recipe


@dataclass(frozen=True)
class GeneratedBytes:
    """Audio that goes straight to the client and is kept nowhere."""

    audio: bytes
    recipe: Recipe


class Generation(Protocol):
    """What the synchronous routes ask for, wherever the audio is made."""

    def generate_file(self, command: GenerateCommand, client_gone: Callable[[], bool]) -> GeneratedFile:
        """Generate and store. Raises what ended it, Canceled, DeadlineExceeded."""

    def generate_bytes(self, command: GenerateCommand, client_gone: Callable[[], bool]) -> GeneratedBytes:
        """Generate and return the encoded audio. Raises as `generate_file`."""


class GenerationService:
    """Runs generations from a validated command to audio."""

    def __init__(self, engine: Engine, store: AudioStore, config: Config, observer: Observer | None = None) -> None:
        self._engine = engine
        self._store = store
        self._config = config
        self._observer = observer or Observer()

    def generate_file(self, command: GenerateCommand, client_gone: Callable[[], bool]) -> GeneratedFile:
        """Generate and store. Raises what the engine, the converter or the store raises, Canceled, DeadlineExceeded."""
        submission = self.submit(command)
        return self.save(submission, self.await_result(submission, client_gone))

    def generate_bytes(self, command: GenerateCommand, client_gone: Callable[[], bool]) -> GeneratedBytes:
        """Generate and return the encoded audio. Raises as `generate_file`."""
        submission = self.submit(command)
        result = self.await_result(submission, client_gone)
        return GeneratedBytes(self._encode(result, command.output_format), self.recipe(submission, result))

    def submit(self, command: GenerateCommand, deadline_seconds: float | None = None) -> Submission:
        """Resolve the seed and hand the command to the engine.

        It may take `deadline_seconds`, by default those of a synchronous request. Raises QueueFull, ShuttingDown.
        """
        started = time.monotonic()
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
        deadline = started + (deadline_seconds or self._config.request_deadline_seconds)
        request = self._engine.submit(params, deadline=deadline)
        self._observer.generation_begun(request)
        return Submission(command, params, request, started)

    def await_result(self, submission: Submission, client_gone: Callable[[], bool]) -> GenerationResult:
        """Wait for the engine; stop it when the client leaves (Canceled) or the deadline passes (DeadlineExceeded)."""
        request = submission.request
        while not request.wait(CLIENT_POLL_SECONDS):
            # The engine checks both while it decodes; a request still waiting for its turn is checked here.
            if client_gone():
                request.cancel()
                raise Canceled("The client left.")
            if request.deadline is not None and time.monotonic() >= request.deadline:
                request.cancel()
                deadline_seconds = request.deadline - submission.started
                raise DeadlineExceeded(
                    f"The generation did not finish within {deadline_seconds:.6g} seconds; "
                    "ask for less audio or try again later."
                )
        return request.result()

    def save(self, submission: Submission, result: GenerationResult) -> GeneratedFile:
        """Convert a result and store it."""
        output_format, owner = submission.command.output_format, submission.command.audio_owner
        audio = self._encode(result, output_format)
        with self._observer.step("store"):
            stored = self._store.save(audio, convert.FORMATS[output_format].extension, owner)
        return GeneratedFile(stored.filename, self._store.url_for(stored.filename), self.recipe(submission, result))

    def _encode(self, result: GenerationResult, output_format: str) -> bytes:
        timeout_seconds = self._config.convert_timeout_seconds
        with self._observer.step("convert"):
            return convert.encode(result.waveform, result.sample_rate, output_format, timeout_seconds=timeout_seconds)

    def recipe(self, submission: Submission, result: GenerationResult) -> Recipe:
        """Tell what a result is and how it was made."""
        return Recipe(
            format=submission.command.output_format,
            sample_rate=convert.FORMATS[submission.command.output_format].sample_rate or result.sample_rate,
            duration_seconds=result.waveform.shape[1] / result.sample_rate,
            generation_seconds=time.monotonic() - submission.started,
            seed=submission.params.seed,
            model=result.model,
            revision=result.revision,
        )
