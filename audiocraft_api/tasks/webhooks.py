"""Tells the webhooks of finished tasks, each until its target takes it or the attempts are used up.

The store keeps what is still to be told, so a restart forgets nothing, and a call whose answer was lost is made again:
targets know it by its `webhook-id`, the task's. Memory and threads are bounded, however many wait. A target that
is slow never has more than half of the threads, and one that fails is left alone for a while: the others' webhooks
pass it. Knows a store by its interface; what is told is rendered by whoever makes the sender.
"""

from __future__ import annotations

import http.client
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from audiocraft_api.config import Config
from audiocraft_api.config.webhooks import webhook_key
from audiocraft_api.core.errors import InvalidRequest, StorageUnavailable
from audiocraft_api.core.observer import NULL_OBSERVER, Observer
from audiocraft_api.net.outbound import ForbiddenTarget, call, parse_target, signed_headers
from audiocraft_api.tasks.store.base import TaskStore, host_of
from audiocraft_api.tasks.task import Task

POLL_SECONDS = 1.0  # for new final states and ended pauses
BACKOFF_SECONDS = 1.0  # before the second attempt; four times as long before each further one
BACKOFF_FACTOR = 4
MAX_BACKOFF_SECONDS = 3600.0
MAX_SUSPENSION_SECONDS = 60.0  # of a target; longer, and one that came back would wait for nothing
OUTCOMES = ("told", "failed", "given_up")  # of a call; one that failed comes again
STOP_SECONDS = 1.0  # for calls in flight; those that are cut off are made again after a restart

logger = logging.getLogger(__name__)


@dataclass
class _HostState:
    num_calls: int = 0  # in flight
    num_failures: int = 0  # in a row
    suspended_until: float = 0.0  # time.monotonic()


class WebhookSender:
    """Threads that tell webhooks. Without a secret in `config` it starts none and `check` refuses."""

    def __init__(
        self,
        tasks: TaskStore,
        render: Callable[[Task], dict[str, Any]],
        config: Config,
        observer: Observer = NULL_OBSERVER,
    ) -> None:
        self._tasks = tasks
        self._observer = observer
        self._render = render
        self._key = webhook_key(config.webhooks.secret)
        self._allow_private = config.webhooks.allow_private
        self._max_attempts = config.webhooks.attempts
        self._timeout_seconds = config.webhooks.timeout_seconds
        self._num_threads = config.webhooks.threads
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # one thread looks; the others call, or wait to look
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._hosts: dict[str, _HostState] = {}

    def check(self, url: str) -> None:
        """Raise InvalidRequest for an address that would never be called."""
        if not self._key:
            raise _refused("is not offered by this server: it has no secret to sign with")
        try:
            parse_target(url, allow_private=self._allow_private)
        except ForbiddenTarget as error:
            raise _refused(str(error)) from None

    def start(self) -> None:
        """Start once; threads do not survive a fork. After `close`, do nothing."""
        with self._lock:
            if not self._key or self._threads or self._closing.is_set():
                return
            for number in range(self._num_threads):
                thread = threading.Thread(target=self._work, name=f"webhooks-{number}", daemon=True)
                self._threads.append(thread)
                thread.start()

    def close(self) -> None:
        """Begin no more calls, and wait shortly for those in flight."""
        with self._lock:
            self._closing.set()
        self._wake.set()
        until = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))

    def _work(self) -> None:
        while (task := self._next()) is not None:
            try:
                self._tell(task)
            except StorageUnavailable:
                pass  # logged where it was raised; the webhook comes again when its hold ends
            except Exception:
                logger.exception("The webhook of task %s could not be told.", task.id)

    def _next(self) -> Task | None:
        """Wait for a webhook and claim it; None once the sender closes."""
        hold_seconds = 2 * self._timeout_seconds + 30.0  # resolving a name has no limit of its own
        with self._turn:
            while not self._closing.is_set():
                try:
                    if task := self._tasks.claim_webhook(hold_seconds, self._busy_hosts()):
                        self._enter(task)
                        return task
                except StorageUnavailable:
                    pass  # logged where it was raised
                except Exception:
                    logger.exception("The webhook sender could not look for work.")
                self._wake.wait(POLL_SECONDS)
                self._wake.clear()
        return None

    def _tell(self, task: Task) -> None:
        failure: str | None = "it was interrupted"
        is_last = task.webhook_attempts >= self._max_attempts
        try:
            failure = self._call(task)
        except ForbiddenTarget as error:
            failure, is_last = str(error), True
        finally:
            self._leave(task, is_healthy=failure is None)
        self._observer.webhook_called("told" if failure is None else "given_up" if is_last else "failed")
        if failure is None:
            self._tasks.end_webhook(task)
        elif is_last:
            attempts = task.webhook_attempts
            logger.warning("The webhook of task %s is given up after %d attempts: %s.", task.id, attempts, failure)
            self._tasks.end_webhook(task)
        else:
            seconds = min(BACKOFF_SECONDS * BACKOFF_FACTOR ** (task.webhook_attempts - 1), MAX_BACKOFF_SECONDS)
            logger.info("The webhook of task %s will be told again in %.0f s: %s.", task.id, seconds, failure)
            self._tasks.pause_webhook(task, seconds)

    def _call(self, task: Task) -> str | None:
        """Return why the target did not take it, None when it did. Raises ForbiddenTarget."""
        target = parse_target(task.webhook_url or "", allow_private=self._allow_private)
        body = json.dumps(self._render(task)).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "audiocraft-api", "Connection": "close"}
        headers |= signed_headers(self._key, task.id, body)
        try:
            status = call(
                target, body, headers, allow_private=self._allow_private, timeout_seconds=self._timeout_seconds
            )
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}"
        return None if 200 <= status < 300 else f"the answer was {status}"

    def _busy_hosts(self) -> list[str]:
        """Return the hosts that have as many calls as they may, or are left alone."""
        now = time.monotonic()
        most = max(self._num_threads // 2, 1)
        with self._lock:
            return [
                host for host, state in self._hosts.items() if state.num_calls >= most or state.suspended_until > now
            ]

    def _enter(self, task: Task) -> None:
        with self._lock:
            self._hosts.setdefault(host_of(task.webhook_url) or "", _HostState()).num_calls += 1

    def _leave(self, task: Task, *, is_healthy: bool) -> None:
        now = time.monotonic()
        with self._lock:
            state = self._hosts[host_of(task.webhook_url) or ""]
            state.num_calls -= 1
            state.num_failures = 0 if is_healthy else state.num_failures + 1
            if state.num_failures:
                seconds = min(BACKOFF_SECONDS * 2.0 ** min(state.num_failures - 1, 10), MAX_SUSPENSION_SECONDS)
                state.suspended_until = now + seconds
            self._hosts = {  # forget those that are well, or were not asked for long
                host: kept
                for host, kept in self._hosts.items()
                if kept.num_calls or (kept.num_failures and kept.suspended_until + MAX_SUSPENSION_SECONDS > now)
            }
        self._wake.set()


def _refused(reason: str) -> InvalidRequest:
    sentence = f"webhook_url {reason}."
    return InvalidRequest(sentence, {"webhook_url": [sentence]})
