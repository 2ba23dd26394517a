"""Limits of callers and addresses: requests per minute, usage per day, and concurrent requests.

A limit of 0 is disabled and does not access a store. Knows callers and addresses, and nothing of Flask.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from audiocraft_api.access.caller import Caller, CallerLimits
from audiocraft_api.access.quota_store import DAY_SECONDS, QuotaStore, Usage
from audiocraft_api.access.rate_limiter import RateLimiter, RateLimitState
from audiocraft_api.config.limits import LimitSettings
from audiocraft_api.core.errors import QuotaExceeded, RateLimited, StorageUnavailable, TooManyRequestsAtOnce

logger = logging.getLogger(__name__)


@dataclass
class Admission:
    """The charge and the slot of an admitted request. `refund`, `commit` and `release` are idempotent."""

    states: list[RateLimitState] = field(default_factory=list)
    _undo: dict[str, Callable[[], None]] = field(default_factory=dict)

    def refund(self) -> None:
        """Return the charge to the daily quota, because the request failed."""
        if undo := self._undo.pop("charge", None):
            self.states = []
            undo()

    def commit(self) -> None:
        """Keep the charge whatever happens to the request, for example because a task was accepted."""
        self._undo.pop("charge", None)

    def release(self) -> None:
        """Free the slot among the caller's concurrent requests."""
        if undo := self._undo.pop("slot", None):
            undo()

    def on_refund(self, undo: Callable[[], None]) -> None:
        self._undo["charge"] = undo

    def on_release(self, undo: Callable[[], None]) -> None:
        self._undo["slot"] = undo


class Limits:
    """Admits or rejects requests. Thread-safe."""

    def __init__(
        self,
        rate_limiter: RateLimiter,
        quotas: QuotaStore,
        config: LimitSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rate_limiter = rate_limiter
        self._quotas = quotas
        self._config = config
        self._clock = clock
        self._lock = threading.Lock()
        self._num_running: Counter[str] = Counter()

    def count_failed_auth(self, address: str) -> None:
        """Count a failed authentication against its address. Raises RateLimited."""
        if limit := self._config.address_requests_per_minute:
            self._hit("address", f"address {address}", limit)

    def admit(
        self, caller: Caller, address: str, seconds: float, *, is_repeat: Callable[[], bool] = lambda: False
    ) -> Admission:
        """Charge one request for `seconds` of audio. A repeated idempotency key is not charged to the daily quota.

        `is_repeat` is called only if the caller has a quota. Raises RateLimited, TooManyRequestsAtOnce, QuotaExceeded;
        StorageUnavailable if the caller has a quota.
        """
        admission = Admission()
        name, limits = _counter_name(caller, address), self._limits_of(caller)
        for limit_name, key, limit in self._rate_limits(caller, address):
            admission.states.append(self._hit(limit_name, key, limit))
        if limits.concurrent_requests:
            self._acquire_slot(name, limits.concurrent_requests)
            admission.on_release(lambda: self._release_slot(name))
        try:
            if (limits.requests_per_day or limits.audio_seconds_per_day) and not is_repeat():
                self._charge(admission, name, limits, seconds)
        except BaseException:
            admission.release()
            raise
        return admission

    def charge_more(self, caller: Caller, address: str, seconds: float) -> Admission:
        """Charge further audio of an admitted request; only `refund` of the result has an effect.

        Raises QuotaExceeded, StorageUnavailable.
        """
        admission, limits = Admission(), self._limits_of(caller)
        if limits.audio_seconds_per_day:
            self._charge(admission, _counter_name(caller, address), replace(limits, requests_per_day=0), seconds, 0)
        return admission

    def peek(self, caller: Caller | None, address: str) -> list[RateLimitState]:
        """Return the state of all limits, or of the address limit if there is no caller, without counting a request."""
        states = [
            replace(self._rate_limiter.peek(key, limit), name=limit_name)
            for limit_name, key, limit in self._rate_limits(caller, address)
        ]
        limits = self._limits_of(caller) if caller else CallerLimits()
        if caller and (limits.requests_per_day or limits.audio_seconds_per_day):
            now = self._clock()
            try:
                usage = self._quotas.usage(_counter_name(caller, address), int(now // DAY_SECONDS))
            except StorageUnavailable:
                return states
            states += _daily_states(limits, usage, now)
        return states

    def _limits_of(self, caller: Caller) -> CallerLimits:
        """Return the caller's limits; the settings fill in the ones that are None."""
        own, config = caller.limits, self._config
        return CallerLimits(
            *(
                setting if limit is None else limit
                for limit, setting in (
                    (own.requests_per_minute, config.requests_per_minute),
                    (own.requests_per_day, config.requests_per_day),
                    (own.audio_seconds_per_day, config.audio_seconds_per_day),
                    (own.concurrent_requests, config.concurrent_requests),
                )
            )
        )

    def _rate_limits(self, caller: Caller | None, address: str) -> Iterator[tuple[str, str, int]]:
        """Yield (name, counter key, limit). The address is first: its rejections must not count for the API key."""
        if limit := self._config.address_requests_per_minute:
            yield "address", f"address {address}", limit
        if caller and (limit := self._limits_of(caller).requests_per_minute or 0):
            yield "burst", f"caller {_counter_name(caller, address)}", limit

    def _hit(self, name: str, key: str, limit: int) -> RateLimitState:
        state = self._rate_limiter.hit(key, limit)
        if not state.is_allowed:
            subject = "Your address is" if name == "address" else "You are"
            sentence = (
                f"{subject} limited to {limit} generations per minute. Try again after the time in `Retry-After`."
            )
            raise RateLimited(sentence, state.reset_seconds)
        return replace(state, name=name)

    def _acquire_slot(self, name: str, limit: int) -> None:
        with self._lock:
            if self._num_running[name] >= limit:
                raise TooManyRequestsAtOnce(
                    f"You already have {limit} concurrent requests, which is your limit. Wait for one to finish.",
                    1.0,
                )
            self._num_running[name] += 1

    def _release_slot(self, name: str) -> None:
        with self._lock:
            self._num_running[name] -= 1
            self._num_running += Counter()  # drops the names with a count of 0

    def _charge(
        self, admission: Admission, name: str, limits: CallerLimits, seconds: float, num_requests: int = 1
    ) -> None:
        now = self._clock()
        day = int(now // DAY_SECONDS)
        max_requests, max_seconds = limits.requests_per_day or 0, limits.audio_seconds_per_day or 0
        usage = self._quotas.charge(
            name, day, seconds, max_requests=max_requests, max_seconds=max_seconds, num_requests=num_requests
        )
        if not usage.is_charged:
            if max_requests and usage.requests >= max_requests:
                sentence = f"Your daily quota of {max_requests} generations is used up. It resets at midnight UTC."
            else:
                left = max_seconds - usage.seconds
                sentence = (
                    f"Your daily quota of {max_seconds} seconds of audio has {left:g} seconds left. "
                    "Request less audio, or wait until it resets at midnight UTC."
                )
            raise QuotaExceeded(sentence, DAY_SECONDS - now % DAY_SECONDS)
        admission.on_refund(lambda: self._refund(name, day, seconds, num_requests))
        admission.states += _daily_states(limits, usage, now)

    def _refund(self, name: str, day: int, seconds: float, num_requests: int) -> None:
        try:
            self._quotas.refund(name, day, seconds, num_requests)
        except StorageUnavailable as error:
            logger.warning("Could not refund a failed request: %s", error)


def network_of(address: str) -> str:
    """Return the network that counts as one address: the /64 network of an IPv6 address, or the IPv4 address itself."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]  # from a proxy or a Unix socket
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
        parsed = parsed.ipv4_mapped
    return str(parsed)


def _counter_name(caller: Caller, address: str) -> str:
    """Return the name of the counter: the caller's key, or the address if the caller has no key."""
    return f"key {caller.owner}" if caller.owner is not None else f"address {address}"


def _daily_states(limits: CallerLimits, usage: Usage, now: float) -> Iterator[RateLimitState]:
    for name, quota, used in (
        ("day", limits.requests_per_day, usage.requests),
        ("audio-day", limits.audio_seconds_per_day, usage.seconds),
    ):
        if quota:
            remaining, reset_seconds = int(max(quota - used, 0)), DAY_SECONDS - now % DAY_SECONDS
            yield RateLimitState(quota, remaining, reset_seconds, DAY_SECONDS, name=name)
