"""Returns stored audio for repeated requests, and generates audio only once for identical concurrent requests.

Within a process, one request leads and the others wait for its result. Among processes that share a store, the leader
holds a lease. A leader never waits for a follower, and each request waits until its own deadline at most, and only
while its own client is connected. If a store fails, audio is generated as if there were no cache. Knows nothing of
engines.
"""

from __future__ import annotations

import copy
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from audiocraft_api.audio.convert import ALL_FORMATS
from audiocraft_api.config import Config
from audiocraft_api.core.errors import AudioCraftError, Canceled, DeadlineExceeded, NotFound, StorageUnavailable
from audiocraft_api.core.heartbeat import Heartbeat
from audiocraft_api.core.observer import NULL_OBSERVER, Observer
from audiocraft_api.core.waiting import Waiter
from audiocraft_api.generation.cache.base import CachedResult, ResultStore
from audiocraft_api.generation.cache.packing import PACKED_EXTENSION, packed, unpacked
from audiocraft_api.generation.cache.result_key import result_key
from audiocraft_api.generation.command import GenerateCommand, GeneratedBytes
from audiocraft_api.generation.recipe import Recipe
from audiocraft_api.storage.base import AudioStore

LEASE_POLL_SECONDS = 0.25  # between attempts to acquire a lease that another process holds
RENEWALS_PER_LEASE = 3


@dataclass(frozen=True)
class CacheKey:
    """What a result is cached under: `digest` covers everything that the audio depends on, `revision` included."""

    digest: str
    revision: str  # of the model's files on disk
    owner: str | None  # of the audio


class InFlight:
    """A result that a request of this process is generating. Ends once, with a result, an error or neither."""

    def __init__(self) -> None:
        self.result: GeneratedBytes | None = None
        self.error: AudioCraftError | None = None
        self._ended = threading.Event()

    def wait(self, seconds: float) -> bool:
        """Wait for the end; return whether it was reached."""
        return self._ended.wait(seconds)

    def end(self) -> None:
        self._ended.set()


class ResultCache:
    """The cached results of one server. Thread-safe."""

    def __init__(
        self,
        store: ResultStore,
        files: AudioStore,
        known_revision: Callable[[str], str | None],
        config: Config,
        observer: Observer = NULL_OBSERVER,
    ) -> None:
        self._store = store
        self._files = files
        self._known_revision = known_revision
        self._config = config
        self._observer = observer
        self._lease_seconds = config.tasks.lease_seconds
        self._holder = uuid.uuid4().hex  # of this process's leases
        self._lock = threading.Lock()
        self._in_flight: dict[str, InFlight] = {}

    def key(self, command: GenerateCommand) -> CacheKey | None:
        """Return the command's key; None when the client chose no seed or the model's revision is unknown."""
        revision = None if command.seed is None or command.seed_drawn else self._known_revision(command.model)
        if revision is None:
            return None
        return CacheKey(result_key(command, revision, self._config), revision, command.audio_owner)

    def get(self, key: CacheKey) -> GeneratedBytes | None:
        """Return the cached result, or None. A result whose file no longer exists is deleted."""
        with suppress(StorageUnavailable):  # logged where it was raised
            cached = self._store.get(key.digest)
            if cached is None:
                return None
            try:
                with self._files.open(cached.filename).file as file:
                    content = file.read()
                codes = self._files.codes_of(cached.filename) if self._config.storage.store_codes else None
                audio, stems = unpacked(content) if cached.filename.endswith(PACKED_EXTENSION) else (content, {})
                return self._hit(GeneratedBytes(audio, Recipe.from_dict(cached.recipe), codes, stems=stems))
            except NotFound:
                self._store.delete(key.digest, cached.filename)
        return None

    def put(self, key: CacheKey, result: GeneratedBytes) -> None:
        """Cache the result, and share it with the requests of this process that wait for it.

        Does nothing when another revision made the audio: the checkpoint was replaced on disk while the old one is
        still in memory.
        """
        if result.recipe.revision != key.revision:
            return
        with self._lock:
            if in_flight := self._in_flight.get(key.digest):
                in_flight.result = result
        with suppress(StorageUnavailable):
            extension = PACKED_EXTENSION if result.stems else ALL_FORMATS[result.recipe.format].extension
            content = packed(result.audio, result.stems) if result.stems else result.audio
            filename = self._files.save(content, extension, key.owner, result.codes).filename
            for dropped in self._store.put(key.digest, CachedResult(filename, result.recipe.to_dict())):
                with suppress(StorageUnavailable):  # the sweeper deletes it later
                    self._files.delete(dropped)

    @contextmanager
    def single_flight(self, key: CacheKey, waiter: Waiter) -> Iterator[GeneratedBytes | None]:
        """Let one request per key make the result while the others wait for it.

        Yields the result of another request, or None when this request must make it, and `put` it, in the block. When
        the leader is canceled or runs out of time, one of its followers leads next. Any other error of the leader is
        raised in each follower. Raises as `Waiter.raise_if_stopped`.
        """
        in_flight, is_leader = self._join(key)
        while not is_leader:
            waiter.wait_for(in_flight.wait)
            if in_flight.error is None:
                yield None if in_flight.result is None else self._hit(in_flight.result)
                return
            if not isinstance(in_flight.error, (Canceled, DeadlineExceeded)):
                raise copy.copy(in_flight.error)
            in_flight, is_leader = self._join(key)
        try:
            with self._lease(key, waiter):
                # The process that held the lease before us may have made the result.
                in_flight.result = cached = self.get(key)
                if cached is None:
                    self._observer.cache_lookup(hit=False)
                yield cached
        except AudioCraftError as error:
            in_flight.error = error
            raise
        finally:
            with self._lock:
                del self._in_flight[key.digest]
            in_flight.end()

    def _join(self, key: CacheKey) -> tuple[InFlight, bool]:
        """Return the result in flight for the key, and whether this request leads because there was none."""
        with self._lock:
            is_leader = key.digest not in self._in_flight
            return self._in_flight.setdefault(key.digest, InFlight()), is_leader

    @contextmanager
    def _lease(self, key: CacheKey, waiter: Waiter) -> Iterator[None]:
        """Hold the key's lease among processes: wait for it, then renew it every third of its time.

        A process that is killed stops renewing its lease, so that the others wait for at most one lease.
        """
        waiter.wait_for(lambda pause_seconds: self._try_lease(key, pause_seconds), LEASE_POLL_SECONDS)
        try:
            with Heartbeat(lambda: self._try_lease(key), self._lease_seconds / RENEWALS_PER_LEASE, "result-lease"):
                yield
        finally:
            # Before the key leaves `_in_flight`: the next leader in this process has the same holder name.
            with suppress(StorageUnavailable):
                self._store.release(key.digest, self._holder)

    def _try_lease(self, key: CacheKey, pause_seconds: float = 0.0) -> bool:
        """Acquire or renew the lease; while another process has it, pause and return False.

        If the store is unavailable, every process leads: generating audio twice is better than failing.
        """
        try:
            if self._store.lease(key.digest, self._holder, self._lease_seconds):
                return True
        except StorageUnavailable:
            return True
        time.sleep(pause_seconds)
        return False

    def _hit(self, result: GeneratedBytes) -> GeneratedBytes:
        self._observer.cache_lookup(hit=True)
        return replace(result, recipe=replace(result.recipe, is_cached=True))
