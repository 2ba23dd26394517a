"""`python -m bench.gpu [scale …]`: compares the engine on a CUDA device with audiocraft, for one request and for many.

The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys

from bench import engine, shapes
from bench.__main__ import machine

NUM_AT_ONCE = 64
SECONDS = 30.0
AUDIOCRAFT_SECONDS = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scales", nargs="*", default=list(shapes.SCALES), metavar="scale")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="seconds of audio per request")
    parser.add_argument("--at-once", type=int, default=NUM_AT_ONCE, help="number of concurrent requests")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        sys.exit("bench-gpu needs a CUDA device. To measure on the CPU, run make bench.")
    figures: dict[str, object] = {"machine": {**machine(), "gpu": torch.cuda.get_device_name()}}
    for scale in arguments.scales:
        for name, value in _measure(scale, arguments.seconds, arguments.at_once).items():
            figures[f"{scale}_{name}"] = value
            print(f"{scale}_{name:24} {value:.4g}", flush=True)
    print(json.dumps(figures))


def _measure(scale: str, seconds: float, num_at_once: int) -> dict[str, float]:
    import torch

    model = engine.load(scale)
    theirs, _codes = engine.audiocraft(model, AUDIOCRAFT_SECONDS)
    torch.cuda.reset_peak_memory_stats()
    one = engine.batching(model, "auto", seconds)
    many = engine.at_once(model, "auto", seconds, num_at_once)
    return {
        "audiocraft_s_per_s": theirs,
        "auto_s_per_s": one["s_per_s"],
        "auto_speedup": theirs / one["s_per_s"],
        "first_audio_seconds": one["first_audio_seconds"],
        "aggregate_rtf": many,
        "peak_gpu_gb": torch.cuda.max_memory_allocated() / 1e9,
        "weights_gb": model.weight_bytes / 1e9,
    }


if __name__ == "__main__":
    main()
