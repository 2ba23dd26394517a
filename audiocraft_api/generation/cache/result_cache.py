"""Answers a question that was asked before with what is stored, and works equal questions at the same time once.

Within a process one of them leads and the others follow; among processes that share a store the leader holds a lease,
which ends soon after it when it is killed. A leader never waits for a follower, and each waits within its own deadline
for as long as its own client does. Whatever is wrong with the store, audio is made as if there were none. Knows what
makes audio only as functions.
"""

from __future__ import annotations

import copy
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from audiocraft_api.config import Config
from audiocraft_api.core.errors import (
    AudioCraftError,
    Canceled,
    ClientDisconnected,
    DeadlineExceeded,
    NotFound,
    StorageUnavailable,
)
from audiocraft_api.core.observer import Observer
from audiocraft_api.generation.cache.base import CachedResult, ResultStore
from audiocraft_api.generation.cache.result_key import result_key
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.generation.service import HasRecipe, Way
from audiocraft_api.storage.base import AudioStore

CLIENT_POLL_SECONDS = 0.1
LEASE_POLL_SECONDS = 0.25  # for the result of another process
RENEWALS_PER_LEASE = 3

T = TypeVar("T", bound=HasRecipe)


class InFlight:
    """A question that is being worked in this process; ends once."""

    def __init__(self) -> None:
        self.known: CachedResult | None = None
        self.error: AudioCraftError | None = None
        self._ended = threading.Event()

    def wait(self, seconds: float) -> bool:
        return self._ended.wait(seconds)

    def end(self) -> None:
        self._ended.set()


class ResultCache:
    """The known results of one server. Thread-safe."""

    def __init__(
        self,
        store: ResultStore,
        files: AudioStore,
        known_revision: Callable[[str], str | None],
        config: Config,
        observer: Observer | None = None,
    ) -> None:
        self._store = store
        self._files = files
        self._known_revision = known_revision
        self._config = config
        self._observer = observer or Observer()
        self._lease_seconds = config.tasks.lease_seconds
        self._holder = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._flights: dict[str, InFlight] = {}

    def answer(self, command: GenerateCommand, way: Way[T], client_gone: Callable[[], bool], until: float) -> T:
        """Answer a command by `until` (`time.monotonic()`), from what is known or anew.

        Without a seed of the client's, or without knowing the model's revision, always anew. Raises what `way.make`
        raises, Canceled, DeadlineExceeded.
        """
        revision = None if command.seed is None or command.seed_drawn else self._known_revision(command.model)
        if revision is None:
            return way.make(client_gone)
        key = result_key(command, revision, self._config)
        while True:
            if found := self._find(key, way):
                self._observer.cache_lookup(hit=True)
                return found[1]
            flight, leads = self._join(key)
            if leads:
                return self._lead(key, flight, revision, way, client_gone, until)
            while not flight.wait(CLIENT_POLL_SECONDS):
                _check(client_gone, until)
            if flight.known is not None and (answer := self._reuse(key, flight.known, way)) is not None:
                self._observer.cache_lookup(hit=True)
                return answer
            if flight.error is None:
                return way.make(client_gone)
            if not isinstance(flight.error, (Canceled, DeadlineExceeded)):  # those are the leader's alone
                raise copy.copy(flight.error)

    def _lead(
        self,
        key: str,
        flight: InFlight,
        revision: str,
        way: Way[T],
        client_gone: Callable[[], bool],
        until: float,
    ) -> T:
        """Work a question for all who ask it, and end the flight in any case."""
        try:
            found = self._await_lease(key, way, client_gone, until)
            self._observer.cache_lookup(hit=found is not None)
            if found:
                flight.known, answer = found
            else:
                answer = way.make(self._renewing(key, client_gone))
                flight.known = self._keep(key, revision, answer, way)
            return answer
        except AudioCraftError as error:
            flight.error = error
            raise
        finally:
            self._land(key, flight)

    def _land(self, key: str, flight: InFlight) -> None:
        try:
            # First: whoever leads next in this process leases as the same holder.
            with suppress(StorageUnavailable):
                self._store.release(key, self._holder)
        finally:
            with self._lock:
                del self._flights[key]
            flight.end()

    def _join(self, key: str) -> tuple[InFlight, bool]:
        with self._lock:
            leads = key not in self._flights
            return self._flights.setdefault(key, InFlight()), leads

    def _await_lease(
        self, key: str, way: Way[T], client_gone: Callable[[], bool], until: float
    ) -> tuple[CachedResult, T] | None:
        """Wait while another process works the question; return its answer, or None when it is this one's to work."""
        while True:
            is_ours = self._lease(key)
            # Only now: whoever worked it until now kept the result before letting the lease go.
            found = self._find(key, way)
            if found or is_ours:
                return found
            _check(client_gone, until)
            time.sleep(LEASE_POLL_SECONDS)

    def _lease(self, key: str) -> bool:
        try:
            return self._store.lease(key, self._holder, self._lease_seconds)
        except StorageUnavailable:  # rather twice than not at all
            return True

    def _renewing(self, key: str, client_gone: Callable[[], bool]) -> Callable[[], bool]:
        """Return `client_gone`, which is asked all the time, so that it renews the lease on the way."""
        pause_seconds = self._lease_seconds / RENEWALS_PER_LEASE
        due = time.monotonic() + pause_seconds

        def ask() -> bool:
            nonlocal due
            if time.monotonic() >= due:
                self._lease(key)
                due = time.monotonic() + pause_seconds
            return client_gone()

        return ask

    def _find(self, key: str, way: Way[T]) -> tuple[CachedResult, T] | None:
        try:
            known = self._store.find(key)
        except StorageUnavailable:  # logged where it was raised
            return None
        answer = None if known is None else self._reuse(key, known, way)
        return None if known is None or answer is None else (known, answer)

    def _reuse(self, key: str, known: CachedResult, way: Way[T]) -> T | None:
        """Answer from a known result; forget it when its file is gone."""
        try:
            return way.reuse(known)
        except NotFound:
            with suppress(StorageUnavailable):
                self._store.forget(key, known.filename)
        except StorageUnavailable:
            pass
        return None

    def _keep(self, key: str, revision: str, answer: T, way: Way[T]) -> CachedResult | None:
        """Store an answer's audio once more and remember it; None when that cannot be done."""
        if answer.recipe.revision != revision:  # the checkpoint has changed, and another one was still in memory
            return None
        try:
            known = CachedResult(way.store(answer), answer.recipe.answer())
        except (NotFound, StorageUnavailable):
            return None
        with suppress(StorageUnavailable):
            for filename in self._store.keep(key, known):
                with suppress(StorageUnavailable):  # the sweep will
                    self._files.delete(filename)
        return known


def _check(client_gone: Callable[[], bool], until: float) -> None:
    """Raise Canceled or DeadlineExceeded for whoever waits for another's result."""
    if client_gone():
        raise ClientDisconnected
    if time.monotonic() >= until:
        raise DeadlineExceeded("The generation did not finish in time; ask for less audio or try again later.")
