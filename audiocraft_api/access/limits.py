"""How much each caller and each address may have: within a minute, on a day, and at the same time.

Knows callers and addresses, nothing of Flask. A limit of 0 is none and costs nothing: no store is asked about it.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from audiocraft_api.access.caller import Caller, CallerLimits
from audiocraft_api.access.quota_store import DAY_SECONDS, QuotaStore, Usage
from audiocraft_api.access.rate_limiter import WINDOW_SECONDS, RateLimiter, Standing
from audiocraft_api.config import Config
from audiocraft_api.core.errors import QuotaExceeded, RateLimited, StorageUnavailable, TooManyRequestsAtOnce

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """One limit as an answer tells of it: `quota` in `window_seconds`, of which `remaining` are left until the reset."""

    name: str
    quota: int
    window_seconds: int
    remaining: int
    reset_seconds: float


@dataclass
class Admission:
    """What an admitted request holds. `refund` and `release` do their work once, however often they are called."""

    windows: list[Window] = field(default_factory=list)
    _undo: dict[str, Callable[[], None]] = field(default_factory=dict)

    def refund(self) -> None:
        """Give the day's quota back: the caller gets nothing for it."""
        if undo := self._undo.pop("charge", None):
            self.windows = []
            undo()

    def commit(self) -> None:
        """Leave the day's quota charged, whatever becomes of the request: a task has been accepted for it."""
        self._undo.pop("charge", None)

    def release(self) -> None:
        """Give back the place among the caller's requests."""
        if undo := self._undo.pop("place", None):
            undo()

    def on_refund(self, undo: Callable[[], None]) -> None:
        self._undo["charge"] = undo

    def on_release(self, undo: Callable[[], None]) -> None:
        self._undo["place"] = undo


class Limits:
    """Admits or refuses. Thread-safe."""

    def __init__(
        self, bursts: RateLimiter, quotas: QuotaStore, config: Config, clock: Callable[[], float] = time.time
    ) -> None:
        self._rate_limiter = bursts
        self._quotas = quotas
        self._config = config
        self._clock = clock
        self._lock = threading.Lock()
        self._num_running: Counter[str] = Counter()

    def count_failed_auth(self, address: str) -> None:
        """Count a wrong key against its address. Raises RateLimited."""
        if limit := self._config.limits.address_requests_per_minute:
            self._hit("address", f"address {address}", limit)

    def admit(
        self, caller: Caller, address: str, seconds: float, *, is_repeat: Callable[[], bool] = lambda: False
    ) -> Admission:
        """Count a request for so many seconds of audio; a repeat, for which nothing is made, costs nothing of a day.

        `is_repeat` is asked where there is a quota.
        Raises RateLimited, TooManyRequestsAtOnce, QuotaExceeded; StorageUnavailable where there is a quota.
        """
        admission = Admission()
        name, limits = _name(caller, address), self._of(caller)
        for window, counted, limit in self._burst_limits(caller, address):
            admission.windows.append(_burst(window, limit, self._hit(window, counted, limit)))
        if limits.concurrent_requests:
            self._take_place(name, limits.concurrent_requests)
            admission.on_release(lambda: self._leave_place(name))
        try:
            if (limits.requests_per_day or limits.audio_seconds_per_day) and not is_repeat():
                self._charge(admission, name, limits, seconds)
        except BaseException:
            admission.release()
            raise
        return admission

    def peek(self, caller: Caller | None, address: str) -> list[Window]:
        """Return the limits as they are, and count nothing; those of the address alone for an unknown caller."""
        windows = [
            _burst(window, limit, self._rate_limiter.peek(counted, limit))
            for window, counted, limit in self._burst_limits(caller, address)
        ]
        limits = self._of(caller) if caller else CallerLimits()
        if caller and (limits.requests_per_day or limits.audio_seconds_per_day):
            now = self._clock()
            try:
                usage = self._quotas.usage(_name(caller, address), int(now // DAY_SECONDS))
            except StorageUnavailable:
                return windows
            windows += _days(limits, usage, now)
        return windows

    def _of(self, caller: Caller) -> CallerLimits:
        """Return a caller's own limits, filled up with the settings."""
        own, config = caller.limits, self._config
        return CallerLimits(
            *(
                setting if limit is None else limit
                for limit, setting in (
                    (own.requests_per_minute, config.limits.requests_per_minute),
                    (own.requests_per_day, config.limits.requests_per_day),
                    (own.audio_seconds_per_day, config.limits.audio_seconds_per_day),
                    (own.concurrent_requests, config.limits.concurrent_requests),
                )
            )
        )

    def _burst_limits(self, caller: Caller | None, address: str) -> Iterator[tuple[str, str, int]]:
        """Yield window, counted name and limit; the address comes first, so that its refusal costs a key nothing."""
        if limit := self._config.limits.address_requests_per_minute:
            yield "address", f"address {address}", limit
        if caller and (limit := self._of(caller).requests_per_minute or 0):
            yield "burst", f"caller {_name(caller, address)}", limit

    def _hit(self, window: str, name: str, limit: int) -> Standing:
        standing = self._rate_limiter.hit(name, limit)
        if not standing.is_allowed:
            whose = "address" if window == "address" else "key"
            sentence = f"Your {whose} may ask for {limit} generations a minute; try again after `Retry-After`."
            raise RateLimited(sentence, standing.reset_seconds)
        return standing

    def _take_place(self, name: str, limit: int) -> None:
        with self._lock:
            if self._num_running[name] >= limit:
                raise TooManyRequestsAtOnce(f"{limit} of your requests are being answered already.", 1.0)
            self._num_running[name] += 1

    def _leave_place(self, name: str) -> None:
        with self._lock:
            self._num_running[name] -= 1
            self._num_running += Counter()  # forgets who has none

    def _charge(self, admission: Admission, name: str, limits: CallerLimits, seconds: float) -> None:
        now = self._clock()
        day = int(now // DAY_SECONDS)
        max_requests, max_seconds = limits.requests_per_day or 0, limits.audio_seconds_per_day or 0
        usage = self._quotas.charge(name, day, seconds, max_requests=max_requests, max_seconds=max_seconds)
        if not usage.is_charged:
            if max_requests and usage.requests >= max_requests:
                sentence = f"You may ask for {max_requests} generations a day."
            else:
                left = max_seconds - usage.seconds
                sentence = f"You may ask for {max_seconds} seconds of audio a day; {left:g} are left for today."
            raise QuotaExceeded(sentence, DAY_SECONDS - now % DAY_SECONDS)
        admission.on_refund(lambda: self._refund(name, day, seconds))
        admission.windows += _days(limits, usage, now)

    def _refund(self, name: str, day: int, seconds: float) -> None:
        try:
            self._quotas.refund(name, day, seconds)
        except StorageUnavailable as error:
            logger.warning("A failed request stays charged: %s", error)


def network_of(address: str) -> str:
    """Return what counts as one address: a /64 of IPv6, which one customer has, and an IPv4 address itself."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]  # what a proxy, or a socket that is a file, calls it
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
        parsed = parsed.ipv4_mapped
    return str(parsed)


def _name(caller: Caller, address: str) -> str:
    """Return whose counts they are: a key's, or an address's where no keys are configured."""
    return f"key {caller.owner}" if caller.owner is not None else f"address {address}"


def _burst(name: str, limit: int, standing: Standing) -> Window:
    return Window(name, limit, WINDOW_SECONDS, standing.remaining, standing.reset_seconds)


def _days(limits: CallerLimits, usage: Usage, now: float) -> Iterator[Window]:
    for name, quota, used in (
        ("day", limits.requests_per_day, usage.requests),
        ("audio-day", limits.audio_seconds_per_day, usage.seconds),
    ):
        if quota:
            yield Window(name, quota, DAY_SECONDS, int(max(quota - used, 0)), DAY_SECONDS - now % DAY_SECONDS)
