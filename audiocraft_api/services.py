"""The services of one process: everything that lives as long as the server does."""

from __future__ import annotations

import logging
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiocraft_api.access.authenticator import Authenticator
from audiocraft_api.access.limits import Limits
from audiocraft_api.access.request_slots import RequestSlots
from audiocraft_api.access.stream_slots import StreamSlots
from audiocraft_api.audio.upload import UploadDecoder
from audiocraft_api.config import Config
from audiocraft_api.core.engine import Engine
from audiocraft_api.generation.preloading import Preloader
from audiocraft_api.generation.service import Generation
from audiocraft_api.generation.streaming import StreamingService
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.model_cache import ModelCache
from audiocraft_api.policy.prompt_policy import PromptPolicy
from audiocraft_api.storage.base import AudioStore
from audiocraft_api.tasks.backend import TaskBackend
from audiocraft_api.telemetry.admin_listener import AdminListener, listen
from audiocraft_api.telemetry.health import Health
from audiocraft_api.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from audiocraft_api.state.redis import RedisClient
    from audiocraft_api.state.sqlite import SqliteFile

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Services:
    """Everything that lives as long as the app."""

    config: Config
    state: SqliteFile | RedisClient  # of keys, quotas and known results
    access: Authenticator
    limits: Limits
    catalog: Catalog
    cache: ModelCache
    policy: PromptPolicy
    engine: Engine
    preloader: Preloader
    store: AudioStore
    generation: Generation
    streaming: StreamingService
    melodies: UploadDecoder
    request_slots: RequestSlots
    stream_slots: StreamSlots
    tasks: TaskBackend
    telemetry: Telemetry
    health: Health
    admin: AdminListener
    draining: threading.Event

    def start(self, admin_socket: socket.socket | None = None) -> None:
        """Start what works without being asked: models load, unfinished tasks go on. Once, in the process that serves.

        `admin_socket` is the open port of the admin listener, where whoever started this process holds it; else it is
        opened here. Raises ConfigError when it cannot be.
        """
        if self.config.telemetry.admin_bind:
            self.admin.start(admin_socket or listen(self.config.telemetry.admin_bind))
        self.access.start()
        self.preloader.start()
        self.tasks.start()

    def close(self, grace_seconds: float = 0.0) -> None:
        """Stop being ready, let running generations go on for `grace_seconds`, then end everything. Once."""
        if self.draining.is_set():
            return
        self.draining.set()
        logger.info("Draining: running generations have %.0f seconds.", grace_seconds)
        tasks = threading.Thread(target=self.tasks.close, args=(grace_seconds,), name="drain-tasks")
        tasks.start()
        self.engine.close(grace_seconds)
        tasks.join()
        self.stream_slots.close()
        self.cache.close()
        self.store.close()
        self.state.close()
        self.telemetry.close()
        self.admin.close()
