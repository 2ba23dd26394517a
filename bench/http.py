"""The engine over HTTP: one request of 10 s, eight at once, and a cold start."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from bench import shapes
from bench.load import Connection
from bench.server import serve

FIELDS = {"prompt": "warm analog synth arpeggio over a slow drum machine, 100 bpm", "duration": 10}
COLD = """
import json, sys, time
from audiocraft_api.config import Config
from audiocraft_api.factory import create_app
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.web.services import services_of
app = create_app(Config(models_file=sys.argv[2], offline=True, log_level="WARNING"))
services = services_of(app)
began = time.perf_counter()
request = services.engine.submit(GenerationParams(sys.argv[1], "warm", duration_seconds=2, seed=1))
while not request.progress[0] and not request.wait(0.005):
    pass
print(json.dumps({"cold_first_token_seconds": time.perf_counter() - began}))
request.cancel()
services.close()
"""


def single_and_eight(scale: str, *, num_at_once: int = 8) -> dict[str, float]:
    """Time `POST /generate` of 10 s as MP3, alone and `num_at_once` concurrently, and read the server's peak memory."""
    name = shapes.checkpoint(scale)
    with serve(models_file=shapes.models_file(), offline=True, precision="auto") as (address, worker):
        fields = {**FIELDS, "model_size": name, "output_format": "mp3"}
        _post(address, {**fields, "duration": 1})
        alone = _post(address, fields)
        peak_alone = _peak_bytes(worker)
        began = time.perf_counter()
        threads = [threading.Thread(target=_post, args=(address, fields)) for _ in range(num_at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        together = time.perf_counter() - began
    return {
        "http_10s_seconds": alone,
        "aggregate_8_rtf": num_at_once * 10 / together,
        "peak_rss_gb": peak_alone / 1e9,
    }


def cold_start(scale: str) -> dict[str, float]:
    """Time a request to its first token in a new process, with the checkpoint in the page cache."""
    name = shapes.checkpoint(scale)
    for path in (shapes.DIRECTORY / name).rglob("*"):
        if path.is_file():
            path.read_bytes()
    command = [sys.executable, "-c", COLD, name, str(shapes.models_file())]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _post(address: tuple[str, int], fields: dict[str, object]) -> float:
    connection = Connection(address)
    began = time.perf_counter()
    status, response = connection.post("/generate", fields)
    seconds = time.perf_counter() - began
    connection.close()
    if status != 200:
        raise RuntimeError(f"{status}: {response}")
    return seconds


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
