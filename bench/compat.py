"""What the routes of other services cost beside `/generate`, with an engine that takes no time."""

from __future__ import annotations

import json
import statistics
import time
from typing import TypeAlias

from bench.load import Connection
from bench.server import serve

INSTANT = "bench.instant_app:create_app()"
SECONDS = 3  # the shortest duration of ElevenLabs
AS_TASK = "Prefer: wait=30\r\n"
INPUT = {"prompt": "compat", "model_version": "demo", "duration": SECONDS, "output_format": "wav"}
# Without storing a file, as the routes of other services.
FIELDS = {"prompt": "compat", "model_size": "demo", "duration": SECONDS, "return_type": "base64"}
PLAIN = ("/generate", FIELDS, "")
Route: TypeAlias = "tuple[str, dict[str, object], str]"  # path, fields, headers
# Each route beside the one of this API that does the same: respond with audio, or run a task and respond with its end.
ROUTES: dict[str, Route] = {
    "openai": ("/v1/audio/music", {"prompt": "compat", "model": "demo", "seconds": SECONDS}, ""),
    "elevenlabs": (
        "/v1/music?output_format=wav",
        {"prompt": "compat", "model_id": "demo", "music_length_ms": 1000 * SECONDS},
        "",
    ),
    "huggingface": ("/hf/demo", {"inputs": "compat", "duration": SECONDS, "output_format": "wav"}, ""),
}
PLAIN_TASK = (*PLAIN[:2], AS_TASK)
TASK_ROUTES: dict[str, Route] = {
    "replicate": ("/v1/predictions", {"input": INPUT}, AS_TASK),
    "cog": ("/predictions", {"input": INPUT}, ""),
}


def overhead(num_requests: int) -> dict[str, object]:
    """Return how many milliseconds the median of each route takes beyond `/generate`, sent in turns."""
    with serve(INSTANT) as (address, _):
        connection = Connection(address)
        answers = _medians(connection, {"": PLAIN, **ROUTES}, num_requests)
        tasks = _medians(connection, {"": PLAIN_TASK, **TASK_ROUTES}, num_requests)
        connection.close()
    found = {name: median - answers[""] for name, median in answers.items() if name}
    found |= {name: median - tasks[""] for name, median in tasks.items() if name}
    return {f"compat_{name}_ms": milliseconds for name, milliseconds in found.items()}


def _medians(connection: Connection, routes: dict[str, Route], num_requests: int) -> dict[str, float]:
    latencies: dict[str, list[float]] = {name: [] for name in routes}
    for number in range(num_requests + 5):
        for name, (path, fields, headers) in routes.items():
            began = time.perf_counter()
            status, response = connection.request("POST", path, json.dumps(fields).encode(), headers)
            if status not in (200, 201):
                raise RuntimeError(f"{path}: {status}: {response[:300]!r}")
            if number >= 5:  # after the warm-up
                latencies[name].append(time.perf_counter() - began)
    return {name: 1e3 * statistics.median(seconds) for name, seconds in latencies.items()}
