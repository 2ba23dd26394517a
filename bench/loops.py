"""How often the demo model makes a loop at a tempo, and how long finding it takes."""

from __future__ import annotations

import json
import time

from bench.load import Connection
from bench.server import serve

PROMPTS = (
    "lo-fi beat with electric piano, soft bass and drums",
    "dark techno, synth lead, pads, drums and synth bass",
    "acoustic folk guitar",
    "house track, organ, deep synth bass, drums",
)
TEMPOS = (75, 92, 100, 107, 110, 125)
BARS = 2


def successes(num_seeds: int) -> dict[str, object]:
    """Return the share of requests that get a loop, by tempo, with one candidate and with four."""
    found: dict[str, object] = {}
    with serve() as (address, _):
        connection = Connection(address)
        for bpm in TEMPOS:
            for candidates in (1, 4):
                began, num_loops, num_requests = time.perf_counter(), 0, 0
                for prompt in PROMPTS:
                    for seed in range(num_seeds):
                        fields = {"prompt": prompt, "model_size": "demo", "seed": seed, "loop": True}
                        fields |= {"bpm": bpm, "bars": BARS, "candidates": candidates}
                        status, response = connection.request("POST", "/generate", json.dumps(fields).encode())
                        if status not in (200, 422):
                            raise RuntimeError(f"{bpm} bpm: {status}: {response[:300]!r}")
                        num_loops += status == 200
                        num_requests += 1
                seconds = (time.perf_counter() - began) / num_requests
                found[f"loops_{bpm}_bpm_{candidates}_of_{num_requests}"] = num_loops
                found[f"loops_{bpm}_bpm_{candidates}_seconds"] = seconds
        connection.close()
    return found
