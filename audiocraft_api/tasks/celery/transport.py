"""Celery as the transport of tasks: its settings, and the messages that bring workers to the task store.

The row is the truth. A message only says that there is work, and may be lost, late or doubled: whoever gets one asks
the store for a task, and a sweep (`CeleryWorker`) sends again what was lost. Knows neither store nor engine.
"""

from __future__ import annotations

import logging
import queue
import threading
from contextlib import suppress
from typing import Any

from celery import Celery, bootsteps
from kombu import Connection, Queue
from kombu.exceptions import OperationalError
from kombu.transport import redis as redis_transport

from audiocraft_api.config import Config
from audiocraft_api.core.errors import Unavailable
from audiocraft_api.tasks.task import Task

RUN_NEXT = "audiocraft_api.run_next"  # () the oldest task that nobody holds
RUN_TASK = "audiocraft_api.run_task"  # (task id) a certain task, whose client waits for the answer
TASKS_QUEUE = "audiocraft-api.tasks"
# A queue of their own: workers take from both in turn, so a client does not wait behind tasks that nobody waits for.
INTERACTIVE_QUEUE = "audiocraft-api.waited-for"
QUEUES = (TASKS_QUEUE, INTERACTIVE_QUEUE)
DRAIN_SHARE = 0.8  # of the graceful time-out; in the rest, what did not finish is given back
MAX_UNSENT = 10_000
CONNECT_SECONDS = 2.0
CLOSE_SECONDS = 2.0
LOOK_SECONDS = 0.05

logger = logging.getLogger(__name__)


class PromptFetch(bootsteps.StartStopStep):  # type: ignore[misc]
    """Has a worker's event loop look often whether a thread of its pool is free to take the next message.

    Without prefetching, Celery 5.7 asks a Redis broker for messages only while a thread is free, and nothing wakes its
    loop when one becomes free: left alone, it looks when a timer ends, which is once a second.
    """

    def register_with_event_loop(self, _consumer: Any, hub: Any) -> None:
        """Wake the loop from now on; Celery cancels it with the connection's other timers."""
        hub.call_repeatedly(LOOK_SECONDS, lambda: None)


def create_celery(config: Config) -> Celery:
    """Return Celery with our settings and without tasks. Connects to nothing yet."""
    # Else a worker that holds a message when Redis goes away dies (kombu 5.7 gives it back over the connection that it
    # has just closed). The sweep sends it again.
    redis_transport.Channel.do_restore = False
    broker_url = config.tasks.broker_url or config.state.redis_url.replace("unix://", "redis+socket://", 1)
    celery = Celery("audiocraft_api", set_as_current=False)
    celery.conf.update(
        broker_url=broker_url,
        broker_connection_timeout=CONNECT_SECONDS,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # an outage of any length
        accept_content=["json"],
        task_ignore_result=True,
        task_default_queue=TASKS_QUEUE,
        task_queues=[Queue(name, routing_key=name) for name in QUEUES],
        # Acknowledged when begun, not when done: the lease in the row says that a worker is gone, in seconds. Late
        # acknowledgements say so after a time-out longer than any task, and one after an outage ends the worker.
        task_acks_late=False,
        # A worker fetches what it can begin and leaves the rest to others; RabbitMQ does it by the multiplier, roughly.
        worker_disable_prefetch=not broker_url.startswith("amqp"),
        worker_prefetch_multiplier=1,
        worker_enable_prefetch_count_reduction=False,  # else a worker takes fewer tasks after each outage
        worker_pool="threads",
        worker_concurrency=config.tasks.concurrency or config.engine.max_batch_requests,
        worker_soft_shutdown_timeout=config.server.graceful_timeout_seconds * DRAIN_SHARE,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    celery.steps["consumer"].add(PromptFetch)
    return celery


class CeleryTransport:
    """Sends messages. Thread-safe; starts a thread with the first announcement, which holds up no client."""

    def __init__(self, celery: Celery) -> None:
        self._celery = celery
        self._lock = threading.Lock()
        self._unsent: queue.Queue[str | None] = queue.Queue(MAX_UNSENT)
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._failing = False

    def announce(self, _task: Task) -> None:
        """Tell the workers soon that there is a new task. Raises nothing: what gets lost, the sweep sends again."""
        self._send_soon("")

    def enqueue_interactive(self, task: Task) -> None:
        """Tell the workers soon of a task whose client waits for the answer. Raises nothing."""
        self._send_soon(task.id)

    def announce_some(self, num_tasks: int) -> None:
        """Tell the workers now of tasks that nobody holds. Raises Unavailable."""
        try:
            for _ in range(num_tasks):
                self._send("")
        except OperationalError as error:
            raise Unavailable("The broker cannot be reached now.") from error

    def num_waiting(self) -> int:
        """Return how many messages no worker has taken yet. Raises Unavailable."""
        with self._celery.connection_for_write(connect_timeout=CONNECT_SECONDS) as connection:
            try:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=CONNECT_SECONDS)
                return sum(_num_messages(connection, name) for name in QUEUES)
            except (*connection.connection_errors, OperationalError) as error:
                raise Unavailable("The broker cannot be reached now.") from error

    def close(self) -> None:
        """Send what is left, as far as that is quick."""
        with self._lock:
            self._closing.set()
            thread = self._thread
        if thread is not None:
            with suppress(queue.Full):
                self._unsent.put_nowait(None)
            thread.join(CLOSE_SECONDS)

    def _send_soon(self, task_id: str) -> None:
        with self._lock:
            if self._closing.is_set():
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_all, name="task-announcer", daemon=True)
                self._thread.start()
        with suppress(queue.Full):
            self._unsent.put_nowait(task_id)

    def _send_all(self) -> None:
        while (task_id := self._unsent.get()) is not None:
            try:
                self._send(task_id)
                self._failing = False
            except Exception as error:  # noqa: BLE001 a broker fails in many ways, and none may end the thread
                if not self._failing:
                    self._failing = True
                    logger.error("The broker cannot be used; tasks wait until it can: %s", error)

    def _send(self, task_id: str) -> None:
        if task_id:
            self._celery.send_task(RUN_TASK, (task_id,), queue=INTERACTIVE_QUEUE, retry=False)
        else:
            self._celery.send_task(RUN_NEXT, queue=TASKS_QUEUE, retry=False)


def _num_messages(connection: Connection, name: str) -> int:
    """Return the length of a queue of the broker; a queue that is not there yet, or not any more, has none."""
    with connection.channel() as channel:
        try:
            return int(channel.queue_declare(queue=name, passive=True).message_count)
        except connection.channel_errors:
            return 0
