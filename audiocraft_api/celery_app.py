"""The entry point of Celery workers: `celery -A audiocraft_api.celery_app worker`. One process owns a device.

Importing this module reads no settings. The attribute `app` is created from the settings on first access, and a worker
builds its services only when it starts.
"""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

from celery import Celery, signals
from celery.concurrency import get_implementation

from audiocraft_api.config import Config, ConfigError, load_config
from audiocraft_api.core import openmp
from audiocraft_api.core.engine import Engine
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.services import WorkerServices, build_worker_services
from audiocraft_api.storage.create import check_store
from audiocraft_api.tasks.celery.transport import DRAIN_SHARE, RUN_NEXT, RUN_TASK, create_celery
from audiocraft_api.tasks.intervals import DEFAULT_INTERVALS, TaskIntervals
from audiocraft_api.telemetry.logs import configure_logging

POOLS = ("threads", "solo")
WRONG_POOL = (
    "The pool must be `threads` or `solo`, because one process owns the device, and neither CUDA nor the engine's "
    "threads survive a fork. Start the worker with: celery -A audiocraft_api.celery_app worker -P threads"
)

logger = logging.getLogger(__name__)


def create_celery_app(
    config: Config | None = None, *, engine: Engine | None = None, intervals: TaskIntervals = DEFAULT_INTERVALS
) -> Celery:
    """Create a Celery app with the tasks of this service. Its workers use `engine` instead of creating one.

    Builds and loads nothing until a worker starts. Raises ConfigError.
    """
    config = config or load_config()
    Catalog(config)  # fail now if the models file is invalid
    check_store(config)
    celery = create_celery(config)
    started: list[WorkerServices] = []

    @celery.task(name=RUN_NEXT, shared=False)  # type: ignore[untyped-decorator]
    def run_next() -> None:
        started[0].tasks.run_task()

    @celery.task(name=RUN_TASK, shared=False)  # type: ignore[untyped-decorator]
    def run_task(task_id: str) -> None:
        started[0].tasks.run_task(task_id)

    def start(sender: Any, **_: Any) -> None:
        if sender.app is not celery:  # signals reach the handlers of every app in the process
            return
        if get_implementation(sender.pool_cls) not in [get_implementation(name) for name in POOLS]:
            sys.exit(WRONG_POOL)
        openmp.limit_spinning()
        # Same as the command-line options `--without-gossip --without-mingle`: workers need not know each other.
        sender.options.update(without_gossip=True, without_mingle=True)
        started.append(build_worker_services(config, celery, engine=engine, intervals=intervals))
        try:
            started[0].start()
        except ConfigError as error:
            sys.exit(str(error))

    def log_ready(sender: Any, **_: Any) -> None:
        if sender.app is celery:
            logger.info("Receiving tasks from %s.", celery.connection().as_uri())

    def begin_stop(**_: Any) -> None:
        grace_seconds = config.server.graceful_timeout_seconds * DRAIN_SHARE
        for services in started:
            # In a thread: a signal handler must not wait for locks that the interrupted code may hold.
            threading.Thread(target=services.begin_drain, args=(grace_seconds,), name="drain").start()

    def close(sender: Any, **_: Any) -> None:
        if sender.app is celery:
            started[0].close()

    signals.setup_logging.connect(lambda **_: configure_logging(config), weak=False)
    signals.worker_init.connect(start, weak=False)
    signals.worker_ready.connect(log_ready, weak=False)
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
