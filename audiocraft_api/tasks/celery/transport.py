"""Celery as the transport of tasks: its configuration, and the messages that wake workers.

The task store is the source of truth. A message only says that there is work; it may be lost, late or duplicated. A
worker that receives one claims a task from the store, and a sweep (`CeleryWorker`) replaces lost messages. Knows
neither store nor engine.
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

from audiocraft_api.config import Config
from audiocraft_api.core.errors import Unavailable
from audiocraft_api.tasks.task import Task

# Names of messages and queues are shared with other releases and must not change.
RUN_NEXT = "audiocraft_api.run_next"  # (): run the next claimable task
RUN_TASK = "audiocraft_api.run_task"  # (task id): run this task, because a client waits for its result
TASKS_QUEUE = "audiocraft-api.tasks"
# Workers consume both queues in turn, so that a waiting client does not queue behind tasks that no client waits for.
INTERACTIVE_QUEUE = "audiocraft-api.waited-for"
QUEUES = (TASKS_QUEUE, INTERACTIVE_QUEUE)
DRAIN_SHARE = 0.8  # of the graceful timeout; the rest of it is for releasing the tasks that did not finish
MAX_UNSENT = 10_000
CONNECT_SECONDS = 2.0
CLOSE_SECONDS = 2.0
FREE_THREAD_POLL_SECONDS = 0.05

logger = logging.getLogger(__name__)


class FreeThreadPoll(bootsteps.StartStopStep):  # type: ignore[misc]
    """Makes a worker notice within 50 ms that a thread of its pool is free for the next message.

    With `worker_disable_prefetch`, a worker fetches messages from Redis only while a thread is free, and nothing wakes
    its event loop when a thread becomes free: by itself it looks about once a second. Written for Celery 5.7; without
    it, `test_a_worker_starts_the_next_task_as_soon_as_a_thread_is_free` fails. A bootstep is a public extension
    point. A setting for it, which Celery does not have, would be preferable.
    """

    def register_with_event_loop(self, _consumer: Any, hub: Any) -> None:
        """Add a timer that wakes the loop; Celery cancels it with the connection's other timers."""
        hub.call_repeatedly(FREE_THREAD_POLL_SECONDS, lambda: None)


def create_celery(config: Config) -> Celery:
    """Return a Celery app with our configuration and without tasks. Does not connect yet."""
    broker_url = config.tasks.broker_url or config.state.redis_url.replace("unix://", "redis+socket://", 1)
    is_redis = not broker_url.startswith("amqp")
    celery = Celery("audiocraft_api", set_as_current=False)
    celery.conf.update(
        broker_url=broker_url,
        # kombu 5.7 would keep unacknowledged messages in keys of its own, and restore them over a connection that Redis
        # may just have closed. We acknowledge early and replace lost messages, so we need none of that.
        broker_transport_options={"ack_emulation": False} if is_redis else {},
        broker_connection_timeout=CONNECT_SECONDS,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # survive an outage of any length
        accept_content=["json"],
        task_ignore_result=True,
        task_default_queue=TASKS_QUEUE,
        task_queues=[Queue(name, routing_key=name) for name in QUEUES],
        # Acknowledge when a task starts. The lease in the store shows within seconds that a worker died; a late
        # acknowledgement would need a timeout longer than any task, and one after an outage ends the worker.
        task_acks_late=False,
        # A worker fetches only what it can start and leaves the rest to others. RabbitMQ approximates this by the
        # multiplier.
        worker_disable_prefetch=is_redis,
        worker_prefetch_multiplier=1,
        worker_enable_prefetch_count_reduction=False,  # otherwise a worker runs fewer tasks after each outage
        worker_pool="threads",
        worker_concurrency=config.tasks.concurrency or config.engine.max_batch_requests,
        worker_soft_shutdown_timeout=config.server.graceful_timeout_seconds * DRAIN_SHARE,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    celery.steps["consumer"].add(FreeThreadPoll)
    return celery


class CeleryTransport:
    """Sends messages. Thread-safe. The first announcement starts a thread, so that no client waits for the broker."""

    def __init__(self, celery: Celery) -> None:
        self._celery = celery
        self._lock = threading.Lock()
        self._unsent: queue.Queue[str | None] = queue.Queue(MAX_UNSENT)  # task id, "" for the next task, None to end
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._failing = False

    def announce(self, _task: Task) -> None:
        """Send a message for a new task in the background. Raises nothing: the sweep replaces lost messages."""
        self._enqueue("")

    def enqueue_interactive(self, task: Task) -> None:
        """Send a message for a task whose client waits for the result, in the background. Raises nothing."""
        self._enqueue(task.id)

    def announce_claimable(self, num_tasks: int) -> None:
        """Send messages for claimable tasks and wait until they are sent. Raises Unavailable."""
        try:
            for _ in range(num_tasks):
                self._send("")
        except OperationalError as error:
            raise Unavailable("The message broker cannot be reached. Try again later.") from error

    def num_waiting(self) -> int:
        """Return how many messages no worker has received yet. Raises Unavailable."""
        with self._celery.connection_for_write(connect_timeout=CONNECT_SECONDS) as connection:
            try:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=CONNECT_SECONDS)
                return sum(_num_messages(connection, name) for name in QUEUES)
            except (*connection.connection_errors, OperationalError) as error:
                raise Unavailable("The message broker cannot be reached. Try again later.") from error

    def close(self) -> None:
        """Send the remaining messages, for at most `CLOSE_SECONDS`."""
        with self._lock:
            self._closing.set()
            thread = self._thread
        if thread is not None:
            with suppress(queue.Full):
                self._unsent.put_nowait(None)
            thread.join(CLOSE_SECONDS)

    def _enqueue(self, task_id: str) -> None:
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
            except Exception as error:  # noqa: BLE001 brokers fail in many ways, and none may end this thread
                if not self._failing:
                    self._failing = True
                    logger.error("The message broker cannot be used; tasks wait until it can: %s", error)

    def _send(self, task_id: str) -> None:
        if task_id:
            self._celery.send_task(RUN_TASK, (task_id,), queue=INTERACTIVE_QUEUE, retry=False)
        else:
            self._celery.send_task(RUN_NEXT, queue=TASKS_QUEUE, retry=False)


def _num_messages(connection: Connection, name: str) -> int:
    """Return the number of messages in a queue; 0 if the broker has no such queue."""
    with connection.channel() as channel:
        try:
            return int(channel.queue_declare(queue=name, passive=True).message_count)
        except connection.channel_errors:
            return 0
