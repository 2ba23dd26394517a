"""`python -m bench.gpu [--quick] [scale …]`: checks and measures the engine on a CUDA device.

Needs torch, transformers and the packages of `python -m bench.bundle` only, and no network. audiocraft is measured too
where it is installed, except with `--quick`. `--device cpu` tries all this on a machine without a GPU.

The last line of standard output is one JSON object, even if a step fails or the time is over.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib.util
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from audiocraft_api.core import openmp
from bench.machine import machine

NUM_AT_ONCE = 64
SECONDS, QUICK_SECONDS = 30.0, 10.0  # of audio per request
PEER_SECONDS = 5.0
LIMIT_SECONDS = 8 * 60.0
QUICK_SCALES = ("small", "medium", "large")
SIGNALS = {signal.SIGTERM, signal.SIGINT}

Figures = dict[str, object]
Step = tuple[str, Callable[[], Figures]]


class Report:
    """Prints each figure when it is known, and all as JSON at the end or when the run is cut short."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._figures: Figures = {}
        self._has_ended = False

    def add(self, figures: Figures) -> None:
        with self._lock:
            self._figures |= figures
            for name, value in figures.items():
                shown = f"{value:.4g}" if isinstance(value, float) else value
                print(f"{name:40} {shown}", flush=True)

    def end(self, **figures: object) -> None:
        """Print the JSON line, once."""
        with self._lock:
            if not self._has_ended:
                self._has_ended = True
                self._figures |= figures
                self._figures["bench_seconds"] = round(time.monotonic() - self._began)
                print(json.dumps(self._figures), flush=True)

    def end_after(self, seconds: float) -> None:
        """End the process with the JSON line at the limit, or at a signal, in a thread of its own.

        The main thread can neither handle a signal nor stop while it waits for the device.
        """

        def wait() -> None:
            received = signal.sigtimedwait(SIGNALS, seconds)
            reason = f"limit of {seconds:g} seconds" if received is None else signal.Signals(received.si_signo).name
            self.end(cut_short=reason)
            os._exit(1)

        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # in all threads that start later
        threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    options = _options()
    report = Report()
    report.end_after(options.limit_seconds)
    _require_packages()
    openmp.limit_spinning()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench-gpu needs a CUDA device. To measure on the CPU, run make bench.")
    gpu = {"gpu": torch.cuda.get_device_name()} if options.device == "cuda" else {}
    report.add({"machine": {**machine(), **gpu}})
    failed: list[str] = []
    try:
        for name, step in _steps(options):
            if not _run(name, step, report):
                failed.append(name)
    finally:
        report.end(**({"failed_steps": failed} if failed else {}))
    sys.exit(1 if failed else 0)


def _require_packages() -> None:
    for name in ("torch", "transformers", "pydantic"):
        if importlib.util.find_spec(name) is None:
            sys.exit(
                f"The package {name} is missing. The benchmark needs torch, transformers and the folder that "
                "make gpu-bench-bundle makes, on PYTHONPATH (docs/performance.md)."
            )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument(
        "scales", nargs="*", metavar="scale", help="tiny, small, medium, large (default: the last three)"
    )
    parser.add_argument("--quick", action="store_true", help="only the checks and shorter runs, within eight minutes")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, help="seconds of audio per request")
    parser.add_argument("--at-once", type=int, default=NUM_AT_ONCE, help="number of concurrent requests")
    parser.add_argument("--limit-seconds", type=float, default=LIMIT_SECONDS, help="time for the whole run")
    options = parser.parse_args()
    options.scales = options.scales or list(QUICK_SCALES)
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    return options


def _run(name: str, step: Callable[[], Figures], report: Report) -> bool:
    """Add a step's figures to the report; return whether it succeeded. The next step runs in any case."""
    try:
        report.add(step())
    except Exception as error:  # noqa: BLE001 - the other steps still give figures
        traceback.print_exc()
        report.add({f"{name}_error": f"{type(error).__name__}: {error}"})
        return False
    finally:
        _free_memory()
    return True


def _steps(options: argparse.Namespace) -> Iterator[Step]:
    """Yield the checks, then the scales. With `--quick`, only the first scale gets many requests at once."""
    import torch

    device = torch.device(options.device)
    yield from _checks(device)
    for number, scale in enumerate(options.scales):
        num_at_once = 0 if options.quick and number else options.at_once
        yield from _engine_steps(scale, device, options.seconds, num_at_once)
        yield f"{scale}_transformers", functools.partial(_transformers, scale, device, options.seconds)
        yield f"{scale}_audiocraft", functools.partial(_audiocraft, scale, options.quick)


def _checks(device: Any) -> Iterator[Step]:
    from bench import graph_checks, random_model

    make = functools.cache(lambda: random_model.RandomModel("tiny", device, _dtype(device)))

    def passes(name: str, check: Callable[[Any], None]) -> Step:
        def step() -> Figures:
            check(make())
            return {name: "passed"}

        return name, step

    yield passes("graph_equals_eager", graph_checks.graphs_equal_eager_steps)
    yield passes("batch_invariance", graph_checks.batches_change_nothing)
    if device.type == "cuda":
        yield "short_memory", lambda: {"short_memory": graph_checks.short_memory_fails_one_request(make())}


def _engine_steps(scale: str, device: Any, seconds: float, num_at_once: int) -> Iterator[Step]:
    """Yield the steps that measure the engine, which share a model."""
    from bench import engine, graph_checks, random_model

    make = functools.cache(lambda: random_model.RandomModel(scale, device, _dtype(device)))
    # On the CPU the same steps as on a GPU, without graphs: the runner for CPUs is measured by `make bench`.
    parts = {"model_runner_factory": graph_checks.runner_factory(capture=False)} if device.type == "cpu" else {}

    def weights() -> Figures:
        return {f"{scale}_weights_gb": make().weight_bytes / 1e9}

    def one() -> Figures:
        found = engine.batching(make(), "auto", seconds, **parts)
        return {f"{scale}_{name}": value for name, value in found.items()} | _peak_memory(
            f"{scale}_peak_gpu_gb", device
        )

    def many() -> Figures:
        rate = engine.at_once(make(), "auto", seconds, num_at_once, **parts)
        name = f"{scale}_{num_at_once}_at_once"
        return {f"{name}_rtf": rate} | _peak_memory(f"{name}_peak_gpu_gb", device)

    yield f"{scale}_weights", weights
    yield f"{scale}_one", one
    if num_at_once:
        yield f"{scale}_many", many


def _transformers(scale: str, device: Any, seconds: float) -> Figures:
    import torch

    from bench import transformers_peer

    types = {"bf16": torch.bfloat16, "fp16": torch.float16} if device.type == "cuda" else {"fp32": torch.float32}
    seconds = min(seconds, PEER_SECONDS)
    return {
        f"{scale}_transformers_{name}_s_per_s": transformers_peer.seconds_per_second(scale, device, dtype, seconds)
        for name, dtype in types.items()
    }


def _audiocraft(scale: str, is_quick: bool) -> Figures:
    """Measure audiocraft's own loop, which needs a checkpoint and takes minutes for a large one."""
    name = f"{scale}_audiocraft_s_per_s"
    if is_quick or importlib.util.find_spec("audiocraft") is None:
        reason = "with --quick" if is_quick else "audiocraft is not installed"
        return {name: f"not measured: {reason}"}
    from bench import engine

    theirs, _codes = engine.audiocraft(engine.load(scale), PEER_SECONDS)
    return {name: theirs}


def _dtype(device: Any) -> Any:
    import torch

    return torch.float16 if device.type == "cuda" else torch.float32


def _peak_memory(name: str, device: Any) -> Figures:
    """Return the most memory that was allocated since the last call."""
    import torch

    if device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return {name: peak}


def _free_memory() -> None:
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # does nothing before CUDA is initialized


if __name__ == "__main__":
    main()
