"""Delivers the webhooks of finished tasks, each until its target accepts it or its attempts are used up.

The store keeps the pending webhooks, so a restart loses none. A call whose response was lost is repeated; targets
recognize it by its `webhook-id`, which is the task's id. Memory and threads are bounded however many webhooks are
pending. One host never occupies more than half of the threads, and a host that fails is suspended for a while, so that
it does not delay the webhooks of other hosts. Knows the store by its interface; its caller renders the body.
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

from audiocraft_api.config.webhooks import WebhookSettings, webhook_key
from audiocraft_api.core.errors import InvalidRequest, StorageUnavailable
from audiocraft_api.core.observer import NULL_OBSERVER, Observer
from audiocraft_api.net.outbound import ForbiddenTarget, parse_target, post, signed_headers
from audiocraft_api.tasks.intervals import DEFAULT_INTERVALS, TaskIntervals
from audiocraft_api.tasks.store.base import TaskStore, host_of
from audiocraft_api.tasks.task import Task

BACKOFF_FACTOR = 4
MAX_SUSPENSION_SECONDS = 60.0  # of a host; a longer one would delay webhooks after the host has recovered
OUTCOMES = ("delivered", "failed", "given_up")  # of a call; a failed one is repeated

logger = logging.getLogger(__name__)


@dataclass
class _HostState:
    num_calls: int = 0  # in flight
    num_failures: int = 0  # in a row
    suspended_until: float = 0.0  # time.monotonic()


class WebhookSender:
    """Threads that deliver webhooks. Without a secret in `config` it starts none, and `check_url` refuses all URLs."""

    def __init__(
        self,
        tasks: TaskStore,
        render: Callable[[Task], dict[str, Any]],
        config: WebhookSettings,
        observer: Observer = NULL_OBSERVER,
        intervals: TaskIntervals = DEFAULT_INTERVALS,
    ) -> None:
        self._tasks = tasks
        self._observer = observer
        self._render = render
        self._config = config
        self._key = webhook_key(config.secret)
        self._intervals = intervals
        self._lock = threading.Lock()
        self._claiming = threading.Lock()  # one thread at a time looks for work; the others call or wait
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._hosts: dict[str, _HostState] = {}

    def check_url(self, url: str) -> None:
        """Raise InvalidRequest for a URL that would never be called."""
        if not self._key:
            raise _invalid_url("is not supported by this server: no webhook secret is configured")
        try:
            parse_target(url, allow_private=self._config.allow_private)
        except ForbiddenTarget as error:
            raise _invalid_url(str(error)) from None

    def start(self) -> None:
        """Start the threads once, after any fork. Does nothing when called again or after `close`."""
        with self._lock:
            if not self._key or self._threads or self._closing.is_set():
                return
            for number in range(self._config.threads):
                thread = threading.Thread(target=self._work, name=f"webhooks-{number}", daemon=True)
                self._threads.append(thread)
                thread.start()

    def close(self) -> None:
        """Start no more calls, and wait briefly for those in flight."""
        with self._lock:
            self._closing.set()
        self._wake.set()
        until = time.monotonic() + self._intervals.webhook_stop
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))

    def _work(self) -> None:
        while (task := self._wait_for_webhook()) is not None:
            try:
                self._deliver(task)
            except StorageUnavailable:
                pass  # the store logged it; the webhook is due again when its lease ends
            except Exception:
                logger.exception("The webhook of task %s could not be delivered.", task.id)

    def _wait_for_webhook(self) -> Task | None:
        """Wait for a webhook and claim it; return None once the sender closes."""
        lease_seconds = 2 * self._config.timeout_seconds + 30.0  # resolving a name has no timeout of its own
        with self._claiming:
            while not self._closing.is_set():
                try:
                    if task := self._tasks.claim_webhook(lease_seconds, self._busy_hosts()):
                        self._count_call(task)
                        return task
                except StorageUnavailable:
                    pass  # the store logged it
                except Exception:
                    logger.exception("The webhook sender could not look for work.")
                self._wake.wait(self._intervals.webhook_poll)
                self._wake.clear()
        return None

    def _deliver(self, task: Task) -> None:
        """Make one delivery attempt and store what follows from it."""
        failure: str | None = "the call was interrupted"
        is_last = task.webhook_attempts >= self._config.attempts
        try:
            failure = self._call(task)
        except ForbiddenTarget as error:
            failure, is_last = f"the URL {error}", True
        finally:
            self._uncount_call(task, is_healthy=failure is None)
        self._observer.webhook_called("delivered" if failure is None else "given_up" if is_last else "failed")
        if failure is None:
            self._tasks.end_webhook(task)
        elif is_last:
            attempts = task.webhook_attempts
            logger.warning("Giving up on the webhook of task %s after %d attempts: %s.", task.id, attempts, failure)
            self._tasks.end_webhook(task)
        else:
            backoff_seconds = self._intervals.webhook_backoff * BACKOFF_FACTOR ** (task.webhook_attempts - 1)
            seconds = min(backoff_seconds, self._intervals.webhook_max_backoff)
            logger.info("The webhook of task %s failed and is repeated in %.0f s: %s.", task.id, seconds, failure)
            self._tasks.pause_webhook(task, seconds)

    def _call(self, task: Task) -> str | None:
        """Call the target; return why it did not accept the webhook, None if it did. Raises ForbiddenTarget."""
        allow_private = self._config.allow_private
        target = parse_target(task.webhook_url or "", allow_private=allow_private)
        body = json.dumps(self._render(task)).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "audiocraft-api", "Connection": "close"}
        headers |= signed_headers(self._key, task.id, body)
        try:
            status = post(
                target, body, headers, allow_private=allow_private, timeout_seconds=self._config.timeout_seconds
            )
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}"
        return None if 200 <= status < 300 else f"status {status}"

    def _busy_hosts(self) -> list[str]:
        """Return the hosts that are suspended or have as many calls in flight as allowed."""
        now = time.monotonic()
        max_calls = max(self._config.threads // 2, 1)
        with self._lock:
            return [
                host
                for host, state in self._hosts.items()
                if state.num_calls >= max_calls or state.suspended_until > now
            ]

    def _count_call(self, task: Task) -> None:
        with self._lock:
            self._hosts.setdefault(host_of(task.webhook_url) or "", _HostState()).num_calls += 1

    def _uncount_call(self, task: Task, *, is_healthy: bool) -> None:
        """Count a call as ended; suspend a host that failed."""
        now = time.monotonic()
        with self._lock:
            state = self._hosts[host_of(task.webhook_url) or ""]
            state.num_calls -= 1
            state.num_failures = 0 if is_healthy else state.num_failures + 1
            if state.num_failures:
                seconds = self._intervals.webhook_backoff * 2.0 ** min(state.num_failures - 1, 10)
                state.suspended_until = now + min(seconds, MAX_SUSPENSION_SECONDS)
            self._hosts = {  # drop hosts that are healthy or were not called for a while
                host: kept
                for host, kept in self._hosts.items()
                if kept.num_calls or (kept.num_failures and kept.suspended_until + MAX_SUSPENSION_SECONDS > now)
            }
        self._wake.set()


def _invalid_url(reason: str) -> InvalidRequest:
    sentence = f"webhook_url {reason}."
    return InvalidRequest(sentence, {"webhook_url": [sentence]})
