"""The entry of Celery workers: `celery -A audiocraft_api.celery_app worker`. One process owns a device.

Composes a worker as `factory` composes a server. Importing this module reads no settings; asking it for `app` reads
them, and only a worker that starts makes an engine.
"""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

from celery import Celery, signals
from celery.concurrency import get_implementation

from audiocraft_api.config import Config, ConfigError, load_config
from audiocraft_api.core.engine import Engine
from audiocraft_api.factory import create_engine, create_results, create_state
from audiocraft_api.generation.preloading import Preloader
from audiocraft_api.generation.service import GenerationService
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.model_cache import ModelCache
from audiocraft_api.storage.create import check_store, create_store
from audiocraft_api.tasks.celery.transport import DRAIN_SHARE, RUN_NEXT, RUN_TASK, CeleryTransport, create_celery
from audiocraft_api.tasks.celery.worker import CeleryWorker
from audiocraft_api.tasks.runner import TaskRunner
from audiocraft_api.tasks.store.redis import RedisTaskStore
from audiocraft_api.telemetry.admin_listener import AdminListener, admin_answers, listen
from audiocraft_api.telemetry.health import Health
from audiocraft_api.telemetry.logs import configure_logging
from audiocraft_api.telemetry.sources import engine_source, health_source
from audiocraft_api.telemetry.telemetry import Telemetry

POOLS = ("threads", "solo")
WRONG_POOL = (
    "The pool must be threads (or solo): a device belongs to one process, and neither CUDA nor the engine's threads "
    "survive a fork. Start it with: celery -A audiocraft_api.celery_app worker -P threads"
)

logger = logging.getLogger(__name__)


class WorkerProcess:
    """Everything that lives as long as a worker."""

    def __init__(self, celery: Celery, config: Config, engine: Engine | None) -> None:
        self._config = config
        self._draining = threading.Event()
        self._telemetry = telemetry = Telemetry("workers", config)
        self._cache = ModelCache(Catalog(config), config)
        self._engine = engine or create_engine(self._cache, config)
        self._preloader = Preloader(self._engine, config.models.preload)
        self._files = telemetry.counting_errors(create_store(config), "audio")
        self._store = telemetry.counting_errors(
            RedisTaskStore(config.state.redis_url, max_attempts=config.tasks.attempts), "tasks"
        )
        self._state = create_state(config)
        results = create_results(self._state, self._files, self._cache, config, telemetry)
        generation = GenerationService(self._engine, self._files, config, results, telemetry)
        runner = TaskRunner(self._store, generation, self._files, config, telemetry)
        self.worker = CeleryWorker(self._store, runner, self._files, CeleryTransport(celery), config)
        health = Health(
            self._engine, self._cache, config, self._draining, pending_models=lambda: self._preloader.pending
        )
        for source in (engine_source(self._engine, self._cache, config), health_source(health)):
            telemetry.metrics.read_from(source)
        self._admin = AdminListener(admin_answers(health, telemetry.metrics))

    def start(self) -> None:
        """Answer the operator, and begin to load models and to look for tasks. Raises ConfigError."""
        if self._config.telemetry.admin_bind:
            self._admin.start(listen(self._config.telemetry.admin_bind))
        self._preloader.start()
        self.worker.start()

    def begin_stop(self) -> None:
        """Let what runs go on for the grace time, then give it back."""
        self._draining.set()
        grace_seconds = self._config.server.graceful_timeout_seconds * DRAIN_SHARE
        logger.info("Draining: running tasks have %.0f seconds.", grace_seconds)
        self.worker.begin_stop(grace_seconds)

    def close(self) -> None:
        """End everything, after the last task."""
        self.worker.close()
        self._engine.close()
        self._cache.close()
        self._store.close()
        self._state.close()
        self._files.close()
        self._telemetry.close()
        self._admin.close()


def create_celery_app(config: Config | None = None, *, engine: Engine | None = None) -> Celery:
    """Make Celery with the tasks of this service; a worker started with it uses `engine` in place of its own.

    Loads nothing until then. Raises ConfigError.
    """
    config = config or load_config()
    Catalog(config)  # its file may be wrong: say so at the start
    check_store(config)
    celery = create_celery(config)
    started: list[WorkerProcess] = []

    @celery.task(name=RUN_NEXT, shared=False)  # type: ignore[untyped-decorator]
    def run_next() -> None:
        started[0].worker.run()

    @celery.task(name=RUN_TASK, shared=False)  # type: ignore[untyped-decorator]
    def run_task(task_id: str) -> None:
        started[0].worker.run(task_id)

    def start(sender: Any, **_: Any) -> None:
        if sender.app is not celery:  # signals are the process's, not the app's
            return
        if get_implementation(sender.pool_cls) not in [get_implementation(name) for name in POOLS]:
            sys.exit(WRONG_POOL)
        # As on the command line: workers need not know of each other.
        sender.options.update(without_gossip=True, without_mingle=True)
        started.append(WorkerProcess(celery, config, engine))
        try:
            started[0].start()
        except ConfigError as error:
            sys.exit(str(error))

    def tell(sender: Any, **_: Any) -> None:
        if sender.app is celery:
            logger.info("Takes tasks from %s.", celery.connection().as_uri())

    def begin_stop(**_: Any) -> None:
        for process in started:
            # From a signal handler, which must not wait for locks that the interrupted code may hold.
            threading.Thread(target=process.begin_stop, name="drain").start()

    def close(sender: Any, **_: Any) -> None:
        if sender.app is celery:
            started[0].close()

    signals.setup_logging.connect(lambda **_: configure_logging(config), weak=False)
    signals.worker_init.connect(start, weak=False)
    signals.worker_ready.connect(tell, weak=False)
    signals.worker_shutting_down.connect(begin_stop, weak=False)
    signals.worker_shutdown.connect(close, weak=False)
    return celery


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        globals()["app"] = create_celery_app()
    except ConfigError as error:
        sys.exit(str(error))
    return globals()["app"]
