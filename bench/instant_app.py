"""The service with an engine that returns silence immediately, to measure the cost of the service alone."""

from __future__ import annotations

import numpy as np
from flask import Flask

from audiocraft_api import factory
from audiocraft_api.core.engine import EngineStatus, QueuePlace
from audiocraft_api.core.errors import NotStreamable, ShuttingDown
from audiocraft_api.core.live_request import LiveRequest
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.request import EngineRequest

SAMPLE_RATE, FRAME_RATE = 32_000, 50


class InstantEngine:
    """An `Engine` that completes each generation on submission."""

    def import_libraries(self) -> None:
        """Do nothing: this engine needs no libraries."""

    def submit(self, params: GenerationParams, *, deadline: float | None = None) -> EngineRequest:
        request = EngineRequest(params, deadline)
        num_frames = int(params.duration_seconds * FRAME_RATE)
        request.start(num_frames, sample_rate=SAMPLE_RATE, frame_rate=FRAME_RATE, revision="none", precision="exact")
        request.push(np.zeros((1, num_frames * SAMPLE_RATE // FRAME_RATE), np.float32))
        request.finish()
        return request

    def submit_live(self, request: LiveRequest) -> None:  # noqa: ARG002
        raise NotStreamable("This engine cannot play live.")

    def queue_place(self, request: EngineRequest) -> QueuePlace | None:  # noqa: ARG002
        return None

    def status(self) -> EngineStatus:
        return EngineStatus(0, 0)

    def close(self, grace_seconds: float = 0.0) -> None:
        pass


class PausedEngine(InstantEngine):
    """An `Engine` whose generations start and run until it is closed."""

    def __init__(self) -> None:
        self._requests: list[EngineRequest] = []

    def submit(self, params: GenerationParams, *, deadline: float | None = None) -> EngineRequest:
        request = EngineRequest(params, deadline)
        request.start(1, sample_rate=SAMPLE_RATE, frame_rate=FRAME_RATE, revision="none", precision="exact")
        self._requests.append(request)
        return request

    def queue_place(self, request: EngineRequest) -> QueuePlace | None:  # noqa: ARG002
        return None

    def status(self) -> EngineStatus:
        return EngineStatus(0, len(self._requests))

    def close(self, grace_seconds: float = 0.0) -> None:  # noqa: ARG002
        for request in self._requests:
            request.fail(ShuttingDown())


def create_paused_app() -> Flask:
    return factory.create_app(engine=PausedEngine())


def create_app() -> Flask:
    return factory.create_app(engine=InstantEngine())
