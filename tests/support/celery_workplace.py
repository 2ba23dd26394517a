"""A real Redis, and a Celery worker inside the tests' process so that it can use their fake engines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from celery.contrib.testing.worker import start_worker

from audiocraft_api.celery_app import create_celery_app
from audiocraft_api.config import Config
from audiocraft_api.core.engine import EngineStatus
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.request import EngineRequest
from support.fakes import FakeEngine
from support.intervals import FAST_INTERVALS
from support.redis_server import RedisServer


class RelayEngine:
    """Forwards requests to the engine of the current test."""

    def __init__(self) -> None:
        self.target = FakeEngine()

    def import_libraries(self) -> None:
        """Do nothing: this engine needs no libraries."""

    def submit(self, params: GenerationParams, *, deadline: float | None = None) -> EngineRequest:
        return self.target.submit(params, deadline=deadline)

    def status(self) -> EngineStatus:
        return self.target.status()

    def close(self, grace_seconds: float = 0.0) -> None:
        self.target.close(grace_seconds)


class CeleryWorkplace:
    """A Redis and a worker that the servers of several tests use, one after the other."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self._redis = RedisServer(directory)
        self._engine = RelayEngine()
        self._settings = {
            "task_backend": "celery",
            "redis_url": self._redis.url,
            "broker_url": self._redis.url.removesuffix("/0") + "/1",
            "audio_dir": directory / "audio",
            **settings,
        }

    @contextmanager
    def opened(self) -> Iterator[CeleryWorkplace]:
        """Run Redis and the worker."""
        self._redis.start()
        try:
            config = Config(**self._settings)
            celery = create_celery_app(config, engine=self._engine, intervals=FAST_INTERVALS)
            options = {"pool": "threads", "concurrency": config.tasks.concurrency}
            with start_worker(celery, perform_ping_check=False, **options):
                yield self
        finally:
            self._redis.kill()

    def prepared_for(self, engine: FakeEngine) -> dict[str, Any]:
        """Delete all tasks, make the worker use this engine, and return the settings of a server."""
        with redis.Redis.from_url(self._redis.url) as client:
            client.flushdb()
        self._engine.target = engine
        return self._settings
