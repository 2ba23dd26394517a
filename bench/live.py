"""Live sessions beside ordinary requests: from a change to its sound, and how much faster than real time they are."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable
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
    """Plays a session as it arrives, and changes its prompt regularly."""

    def __init__(self, address: tuple[str, int], model: str, seconds: float) -> None:
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
    """Play sessions of `seconds` beside two ordinary requests at a time."""
    settings: dict[str, object] = {"live_max_sessions": num_sessions, "live_max_sessions_per_key": 0}
    with serve("app:app", models_file=shapes.models_file(), offline=True, **settings) as (address, _):
        done = threading.Event()
        fields = {"prompt": "a choir", "model_size": model, "duration": 5}
        Connection(address).post("/generate", fields | {"duration": 1})
        others = [threading.Thread(target=_repeat, args=(address, fields, done)) for _ in range(2)]
        listeners = [Listener(address, model, seconds) for _ in range(num_sessions)]
        threads = [threading.Thread(target=listener.listen) for listener in listeners]
        began = time.monotonic()
        _run([*threads, *others], until=threads, then=done.set)
        elapsed = time.monotonic() - began
    latencies = sorted(latency for listener in listeners for latency in listener.change_to_sound)
    total_bytes = sum(listener.seconds for listener in listeners) * BYTES_PER_SECOND
    return {
        f"{prefix}_change_to_sound_median_s": statistics.median(latencies) if latencies else "none",
        f"{prefix}_change_to_sound_p95_s": latencies[int(0.95 * (len(latencies) - 1))] if latencies else "none",
        f"{prefix}_underruns": sum(listener.num_underruns for listener in listeners),
        f"{prefix}_bytes_per_second": total_bytes / elapsed / num_sessions,
        f"{prefix}_real_time_share": total_bytes / BYTES_PER_SECOND / elapsed / num_sessions,
    }


def _repeat(address: tuple[str, int], fields: dict[str, object], done: threading.Event) -> None:
    connection = Connection(address)
    seed = 0
    while not done.is_set():
        seed += 1
        connection.post("/generate", fields | {"seed": seed})
    connection.close()


def _run(threads: list[threading.Thread], until: list[threading.Thread], then: Callable[[], None]) -> None:
    for thread in threads:
        thread.start()
    for thread in until:
        thread.join()
    then()
    for thread in threads:
        thread.join()
