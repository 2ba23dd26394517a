"""The composition root: builds all services that live as long as a process, starts them, and closes them in one order.

Servers and Celery workers are built from the same parts. Knows nothing of Flask.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from audiocraft_api.access.authenticator import Authenticator
from audiocraft_api.access.create import create_key_store, create_quota_store, create_rate_limiter
from audiocraft_api.access.limits import Limits
from audiocraft_api.access.request_slots import RequestSlots
from audiocraft_api.access.stream_slots import StreamSlots
from audiocraft_api.audio.upload import UploadDecoder
from audiocraft_api.config import Config
from audiocraft_api.core.engine import Engine, EngineStatus
from audiocraft_api.engine.create import create_engine
from audiocraft_api.generation.cache.create import create_result_cache
from audiocraft_api.generation.model_control import ModelControl
from audiocraft_api.generation.preloading import Preloader
from audiocraft_api.generation.service import Generation, GenerationService
from audiocraft_api.live.performances import Performances
from audiocraft_api.live.sessions import LiveSessions
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.model_cache import ModelCache
from audiocraft_api.model.stem_separators import StemSeparators
from audiocraft_api.policy.prompt_policy import PromptPolicy
from audiocraft_api.state.create import StateDatabase, create_state
from audiocraft_api.storage.base import AudioStore
from audiocraft_api.storage.client_files import ClientFiles
from audiocraft_api.storage.create import create_store
from audiocraft_api.tasks.backend import EmbeddedBackend, TaskBackend
from audiocraft_api.tasks.expiry import TaskExpiry
from audiocraft_api.tasks.intervals import DEFAULT_INTERVALS, TaskIntervals
from audiocraft_api.tasks.monitor import QueueMonitor
from audiocraft_api.tasks.prediction import webhook_json
from audiocraft_api.tasks.runner import TaskRunner
from audiocraft_api.tasks.store.create import create_redis_task_store, create_task_store
from audiocraft_api.tasks.task import Task
from audiocraft_api.telemetry import sources
from audiocraft_api.telemetry.admin_listener import AdminListener, admin_endpoints, listen
from audiocraft_api.telemetry.catalog import Place
from audiocraft_api.telemetry.health import Health
from audiocraft_api.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from celery import Celery

    from audiocraft_api.tasks.celery.worker import CeleryWorker

logger = logging.getLogger(__name__)


class TaskProcessing(Protocol):
    """Runs tasks in this process, or sends them to the processes that do."""

    def start(self) -> None:
        """Start the threads. Call in the process that serves requests."""

    def close(self, grace_seconds: float = 0.0) -> None:
        """Let running tasks finish for `grace_seconds`, requeue the others, and stop."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Foundation:
    """The basic services of servers and Celery workers; the other services are built on them."""

    config: Config
    telemetry: Telemetry
    state: StateDatabase  # of API keys, quotas and cached results
    catalog: Catalog
    cache: ModelCache
    store: AudioStore
    draining: threading.Event  # set when the process begins to stop; `/ready` is 503 from then on


@dataclass(frozen=True, eq=False, kw_only=True)
class ProcessServices(Foundation):
    """The services that servers and Celery workers have in common. They live as long as the process."""

    engine: Engine | None  # None in servers whose tasks Celery workers run
    preloader: Preloader | None
    tasks: TaskProcessing
    health: Health
    admin: AdminListener
    _closed: threading.Event = field(default_factory=threading.Event)

    def start(self, admin_socket: socket.socket | None = None) -> None:
        """Start the admin listener, load models and run unfinished tasks. Call once, in the process that serves.

        `admin_socket` is the listening socket of the admin listener if the parent process has opened it. Otherwise
        this method opens it. Raises ConfigError when its address cannot be used.
        """
        if self.config.telemetry.admin_bind:
            self.admin.start(admin_socket or listen(self.config.telemetry.admin_bind))
        if self.preloader:
            self.preloader.start()
        self.tasks.start()

    def begin_drain(self, grace_seconds: float) -> None:
        """Report that this process is not ready. Idempotent."""
        if not self.draining.is_set():
            self.draining.set()
            logger.info("Draining: running generations have %.0f seconds to finish.", grace_seconds)

    def close(self, grace_seconds: float = 0.0) -> None:
        """Drain: let running generations finish for `grace_seconds`, then close everything. Idempotent."""
        if self._closed.is_set():
            return
        self._closed.set()
        self.begin_drain(grace_seconds)
        tasks = threading.Thread(target=self.tasks.close, args=(grace_seconds,), name="drain-tasks")
        tasks.start()
        if self.engine:
            self.engine.close(grace_seconds)
        tasks.join()
        self._close_streams()
        self.cache.close()
        self.store.close()
        self.state.close()
        self.telemetry.close()
        self.admin.close()

    def _close_streams(self) -> None:
        """Do nothing: only servers have streams."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Services(ProcessServices):
    """The services of a server. They live as long as the process."""

    tasks: TaskBackend
    generation: Generation
    models: ModelControl
    access: Authenticator
    limits: Limits
    policy: PromptPolicy
    uploads: UploadDecoder
    request_slots: RequestSlots
    stream_slots: StreamSlots
    live_sessions: LiveSessions
    performances: Performances
    client_files: ClientFiles

    def start(self, admin_socket: socket.socket | None = None) -> None:
        """Also fetch the public keys that verify tokens, and warn if the server requires no key."""
        super().start(admin_socket)
        self.access.start()

    def _close_streams(self) -> None:
        self.stream_slots.close()


@dataclass(frozen=True, eq=False, kw_only=True)
class WorkerServices(ProcessServices):
    """The services of a Celery worker. They live as long as the process."""

    tasks: CeleryWorker

    def begin_drain(self, grace_seconds: float) -> None:
        """Also stop claiming tasks, and requeue the tasks that still run after `grace_seconds`."""
        super().begin_drain(grace_seconds)
        self.tasks.begin_stop(grace_seconds)


def build_services(
    config: Config,
    *,
    catalog: Catalog | None = None,
    cache: ModelCache | None = None,
    engine: Engine | None = None,
    store: AudioStore | None = None,
    intervals: TaskIntervals = DEFAULT_INTERVALS,
) -> Services:
    """Build the services of a server. Arguments replace the default parts. Starts nothing. Raises ConfigError."""
    base = _build_foundation("servers", config, catalog, cache, store)
    task_store = create_task_store(config, base.telemetry)
    render = _render_task(base.store)
    tasks: TaskBackend
    generation: Generation
    if config.tasks.backend == "celery":
        from audiocraft_api.tasks.celery.backend import CeleryBackend

        tasks = remote = CeleryBackend(task_store, base.store, config, render, base.telemetry, intervals)
        generation, engine = remote.generation, None
    else:
        engine = engine or create_engine(base.cache, config)
        generation = local = _build_generation(base, engine)
        tasks = EmbeddedBackend(task_store, local, base.store, config, render, base.telemetry, intervals)

    preloader = _build_preloader(engine, config)
    health = _build_health(base, engine, preloader, tasks.monitor)
    services = Services(
        **vars(base),
        engine=engine,
        preloader=preloader,
        tasks=tasks,
        health=health,
        admin=AdminListener(admin_endpoints(health, base.telemetry.metrics)),
        generation=generation,
        models=ModelControl(engine, base.cache),
        access=Authenticator(create_key_store(base.state), config, observer=base.telemetry),
        limits=Limits(create_rate_limiter(config), create_quota_store(base.state), config.limits),
        policy=PromptPolicy(config),
        uploads=UploadDecoder(config.audio),
        request_slots=RequestSlots(config.server, config.engine.max_waiting),
        stream_slots=StreamSlots(config.server),
        live_sessions=LiveSessions(config.live),
        performances=Performances(base.store),
        client_files=ClientFiles(base.store, config),
    )
    metrics = services.telemetry.metrics
    metrics.read_from(
        sources.concurrency_metrics(services.request_slots, services.stream_slots, services.live_sessions)
    )
    metrics.read_from(sources.queue_metrics(tasks.monitor, config.tasks.max_queued))
    return services


def build_worker_services(
    config: Config, celery: Celery, *, engine: Engine | None = None, intervals: TaskIntervals = DEFAULT_INTERVALS
) -> WorkerServices:
    """Build the services of a Celery worker. `engine` replaces the default one. Starts nothing. Raises ConfigError."""
    from audiocraft_api.tasks.celery.transport import CeleryTransport
    from audiocraft_api.tasks.celery.worker import CeleryWorker

    base = _build_foundation("workers", config)
    engine = engine or create_engine(base.cache, config)
    task_store = create_redis_task_store(config, base.telemetry)
    generation = _build_generation(base, engine)
    tasks = CeleryWorker(
        task_store,
        TaskRunner(task_store, generation, base.store, config.tasks, base.telemetry, intervals),
        TaskExpiry(task_store, base.store, config.tasks, intervals),
        CeleryTransport(celery),
        lease_seconds=config.tasks.lease_seconds,
        intervals=intervals,
    )
    preloader = _build_preloader(engine, config)
    health = _build_health(base, engine, preloader)
    return WorkerServices(
        **vars(base),
        engine=engine,
        preloader=preloader,
        tasks=tasks,
        health=health,
        admin=AdminListener(admin_endpoints(health, base.telemetry.metrics)),
    )


def _build_foundation(
    place: Place,
    config: Config,
    catalog: Catalog | None = None,
    cache: ModelCache | None = None,
    store: AudioStore | None = None,
) -> Foundation:
    telemetry = Telemetry(place, config)
    catalog = catalog or Catalog(config)
    return Foundation(
        config=config,
        telemetry=telemetry,
        state=create_state(config),
        catalog=catalog,
        cache=cache or ModelCache(catalog, config),
        store=store or create_store(config, telemetry),
        draining=threading.Event(),
    )


def _build_generation(base: Foundation, engine: Engine) -> GenerationService:
    results = create_result_cache(base.state, base.store, base.cache, base.config, base.telemetry)
    separators = StemSeparators(base.catalog, base.config.models)
    base.cache.on_unload(lambda _name: separators.unload())  # memory is short, or models are idle
    return GenerationService(engine, base.store, separators, base.config, results, base.telemetry)


def _build_preloader(engine: Engine | None, config: Config) -> Preloader | None:
    if engine is None:
        return None
    return Preloader(engine, config.models.preload, import_libraries=config.models.import_at_start)


def _build_health(
    base: Foundation, engine: Engine | None, preloader: Preloader | None, monitor: QueueMonitor | None = None
) -> Health:
    """Build the health checks. Also add metrics of readiness and, if the engine is in this process, of the engine."""

    def engine_status() -> EngineStatus:
        if engine:
            return engine.status()
        return EngineStatus(num_waiting=0, num_running=monitor.status.num_processing if monitor else 0)

    health = Health(
        engine_status,
        base.cache,
        base.config.telemetry,
        base.draining,
        num_queued=lambda: monitor.status.num_queued if monitor else 0,
        pending_models=lambda: preloader.pending if preloader else (),
    )
    if engine:
        base.telemetry.metrics.read_from(sources.engine_metrics(engine, base.cache, base.config.engine.max_waiting))
    base.telemetry.metrics.read_from(sources.health_metrics(health))
    return health


def _render_task(files: AudioStore) -> Callable[[Task], dict[str, Any]]:
    return lambda task: webhook_json(task, files)
