"""Live sessions beside ordinary requests: from a change to its sound, and how much faster than real time they are."""

from __future__ import annotations

import json
import math
import statistics
import threading
import time
from typing import Any

from simple_websocket import Client, ConnectionClosed

from bench import shapes
from bench.load import Connection
from bench.server import serve

LEAD_SECONDS = 1.5
CHANGE_SECONDS = 2.0  # between two changes
TEXTS = ("slow ambient pads", "fast techno with a hard kick", "solo cello", "bossa nova guitar")
BYTES_PER_SECOND = 2 * 32_000


class Listener:
    """Plays a session as it arrives, and changes its prompt regularly.

    One that `skips` says that it has played everything at once, so that the server goes as fast as it can.
    """

    def __init__(self, address: tuple[str, int], model: str, seconds: float, *, skips: bool) -> None:
        self._skips = skips
        self._ws = Client.connect(f"ws://{address[0]}:{address[1]}/ws/live")
        start = {"type": "start", "model_size": model, "prompts": [{"text": TEXTS[0]}], "duration": seconds}
        self._send(start | {"lead": LEAD_SECONDS, "seed": 1})
        self._sent_at: list[float] = []  # of changes whose frame is not known yet
        self._pending: list[tuple[float, float]] = []  # time of the change, second from which it holds
        self._num_bytes = 0
        self._heard_until = 0.0  # when all audio received so far has been played
        self.change_to_sound: list[float] = []
        self.num_underruns = 0

    @property
    def seconds(self) -> float:
        """Seconds of audio received."""
        return self._num_bytes / BYTES_PER_SECOND

    def listen(self) -> None:
        """Play until the session ends."""
        number = 0
        try:
            while (message := self._ws.receive(timeout=600)) is not None:
                now = time.monotonic()
                if isinstance(message, bytes):
                    self._play(message, now)
                    if self._skips:
                        self._send({"type": "playback", "position": self.seconds})
                    if self.seconds >= CHANGE_SECONDS * (number + 1):
                        number += 1
                        self._sent_at.append(now)
                        self._send({"type": "prompts", "prompts": [{"text": TEXTS[number % len(TEXTS)]}]})
                else:
                    self._note(json.loads(message))
        except ConnectionClosed:
            return

    def _play(self, audio: bytes, now: float) -> None:
        begins = max(now, self._heard_until)  # a gap if the audio came late
        before = self.seconds
        self._num_bytes += len(audio)
        self._heard_until = begins + len(audio) / BYTES_PER_SECOND
        for pending in [found for found in self._pending if found[1] < self.seconds]:
            changed_at, second = pending
            self.change_to_sound.append(begins + max(0.0, second - before) - changed_at)
            self._pending.remove(pending)

    def _note(self, message: dict[str, Any]) -> None:
        if message["type"] == "applied":
            self._pending.append((self._sent_at.pop(0), message["frame"] / 50))
        elif message["type"] == "error":
            raise RuntimeError(message["error"])
        self.num_underruns += message["type"] == "underrun"

    def _send(self, message: dict[str, Any]) -> None:
        self._ws.send(json.dumps(message))


def sessions(model: str, num_sessions: int, seconds: float, prefix: str) -> dict[str, object]:
    """Play sessions beside two ordinary requests at a time, first in real time, then as fast as they go."""
    settings: dict[str, object] = {"live_max_sessions": num_sessions, "live_max_sessions_per_key": 0}
    with serve("app:app", models_file=shapes.models_file(), offline=True, **settings) as (address, _):
        fields = {"prompt": "a choir", "model_size": model, "duration": 5}
        Connection(address).post("/generate", fields | {"duration": 1})
        listeners, elapsed = _play(address, model, num_sessions, seconds, fields, skips=False)
        fast, elapsed_fast = _play(address, model, num_sessions, seconds, fields, skips=True)
    latencies = sorted(latency for listener in listeners for latency in listener.change_to_sound)
    heard, made = (sum(listener.seconds for listener in found) / num_sessions for found in (listeners, fast))
    return {
        f"{prefix}_change_to_sound_median_s": statistics.median(latencies) if latencies else "none",
        f"{prefix}_change_to_sound_p95_s": latencies[math.ceil(0.95 * len(latencies)) - 1] if latencies else "none",
        f"{prefix}_underruns": sum(listener.num_underruns for listener in listeners),
        f"{prefix}_bytes_per_second": heard * BYTES_PER_SECOND / elapsed,
        f"{prefix}_real_time_share": heard / elapsed,
        f"{prefix}_real_time_factor": made / elapsed_fast,
    }


def _play(
    address: tuple[str, int], model: str, num_sessions: int, seconds: float, fields: dict[str, object], *, skips: bool
) -> tuple[list[Listener], float]:
    """Play sessions while two connections send `fields` again and again. Return also the seconds that it took."""
    done = threading.Event()
    first_seed = 1_000_000 if skips else 0  # so that no result is cached
    others = [threading.Thread(target=_repeat, args=(address, fields, first_seed, done)) for _ in range(2)]
    listeners = [Listener(address, model, seconds, skips=skips) for _ in range(num_sessions)]
    threads = [threading.Thread(target=listener.listen) for listener in listeners]
    began = time.monotonic()
    for thread in (*threads, *others):
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - began
    done.set()
    for thread in others:
        thread.join()
    return listeners, elapsed


def _repeat(address: tuple[str, int], fields: dict[str, object], seed: int, done: threading.Event) -> None:
    connection = Connection(address)
    while not done.is_set():
        seed += 1
        connection.post("/generate", fields | {"seed": seed})
    connection.close()
