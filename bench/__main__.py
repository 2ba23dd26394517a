"""`python -m bench [--quick] [--section NAME]`: measure and print a table; the last line of output is a JSON object."""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence

import numpy as np

from audiocraft_api.core import openmp
from bench.machine import machine

# The required value of each figure and, after "aim", the desired one.
TARGETS = {
    "exact_speedup": "≥ 5.5, aim 7",
    "auto_speedup": "≥ 11, aim 16",
    "step_growth": "≤ 1.5, aim 1.2",
    "http_10s_seconds": "≤ 10",
    "aggregate_8_rtf": "≥ 3, aim 4.5",
    "medium_auto_speedup": "≥ 14, aim 18",
    "codec_pieces_to_whole_1": "≤ 1.1",
    "codec_pieces_to_whole_2": "≤ 1.1",
    "auto_kl_nats": "≤ 0.005",
    "auto_logit_error": "≤ 0.06",
    "first_audio_seconds": "≤ 1.5",
    "service_overhead_wav_ms": "≤ 50",
    "cached_answer_ms": "≤ 25",
    "health_rps": "≥ 1000",
    "health_p99_ms": "≤ 100",
    "accepts_per_second": "≥ 300",
    "accepts_p99_ms": "≤ 250",
    "polls_per_second": "≥ 1000",
    "polls_p99_ms": "≤ 100",
    "full_queue_accepted": "= 50",
    "full_queue_p99_ms": "≤ 100",
    "full_queue_memory_mib": "≤ 50",
    "idle_connections_health_max_ms": "≤ 1000",
    "limit_memory_accepted": "= 50",
    "limit_redis_accepted": "= 50",
    "limit_redis_killed_accepted": "≤ 150",
    "limit_redis_killed_errors": "= 0",
    "live_demo_1_change_to_sound_p95_s": "≤ 2",
    "compat_openai_ms": "≤ 2",
    "compat_elevenlabs_ms": "≤ 2",
    "compat_huggingface_ms": "≤ 2",
    "compat_replicate_ms": "≤ 2",
    "compat_cog_ms": "≤ 2",
    "limits_overhead_ms": "≤ 5",
    "limits_overhead_redis_ms": "≤ 5",
    "limit_refusal_p99_ms": "≤ 100",
    "soak_memory_growth": "≤ 0.05",
    "soak_files_left_over": "= 0",
    "soak_threads_left_over": "≤ 0",
    "soak_descriptors_left_over": "≤ 0",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter runs, on the small shape only")
    parser.add_argument("--section", choices=list(SECTIONS), help="measure only this section")
    options = parser.parse_args()
    openmp.limit_spinning()
    began = time.monotonic()
    figures: dict[str, object] = {"machine": machine()}
    print(json.dumps(figures["machine"]), flush=True)
    failed = []
    try:
        for name in [options.section] if options.section else [name for name in SECTIONS if name not in SEPARATE]:
            measure, programs = SECTIONS[name]
            if not run_section(name, functools.partial(measure, options.quick), programs, figures):
                failed.append(name)
    finally:
        figures["bench_seconds"] = round(time.monotonic() - began)
        if failed:
            figures["failed_sections"] = failed
        print(json.dumps(figures))
    sys.exit(1 if failed else 0)


def run_section(
    name: str, measure: Callable[[], dict[str, object]], programs: Sequence[str], figures: dict[str, object]
) -> bool:
    """Add a section's figures to `figures` and print them; return False if the section failed.

    A section is skipped if one of the programs that it runs is not installed.
    """
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        print(f"Skipped the section {name}: {', '.join(missing)} is not installed (`make setup-tests` installs it).")
        return True
    try:
        measured = measure()
    except Exception:  # noqa: BLE001 - the other sections still give figures
        traceback.print_exc()
        print(f"The section {name} failed.", flush=True)
        return False
    for figure, value in measured.items():
        figures[figure] = value
        shown = f"{value:.4g}" if isinstance(value, float) else value
        print(f"{figure:30} {shown!s:>12}   {TARGETS.get(figure, '')}", flush=True)
    return True


def engine_section(quick: bool) -> dict[str, object]:
    """Compare single requests with audiocraft's own loop and with transformers, on the shapes of released models."""
    from bench import engine

    seconds = 3.0 if quick else 10.0
    model = engine.load("small")
    theirs, codes = engine.audiocraft(model, seconds)
    peers = {"audiocraft": theirs, **engine.transformers_peers("small", 3.0)}
    exact, auto = (engine.batching(model, precision, seconds) for precision in ("exact", "auto"))
    near, far = engine.step_seconds(model, "auto", (75, 1450), 10 if quick else 40)
    figures: dict[str, object] = {
        **{f"{name}_s_per_s": value for name, value in peers.items()},
        "exact_s_per_s": exact["s_per_s"],
        "exact_speedup": theirs / exact["s_per_s"],
        "auto_s_per_s": auto["s_per_s"],
        "auto_speedup": theirs / auto["s_per_s"],
        "fastest_peer": min(peers, key=lambda name: peers[name]),
        "auto_speedup_over_fastest_peer": min(peers.values()) / auto["s_per_s"],
        "exact_tokens_identical": bool(np.array_equal(engine.codes_of(model, "exact", seconds), codes)),
        "exact_tokens_compared": int(codes.size),
        "step_growth": far / near,
        "first_audio_seconds": auto["first_audio_seconds"],
    }
    del model
    for scale in () if quick else ("medium", "audiogen"):
        model = engine.load(scale)
        theirs, _codes = engine.audiocraft(model, 1.0)
        auto = engine.batching(model, "auto", 4.0)
        figures |= {
            f"{scale}_audiocraft_s_per_s": theirs,
            f"{scale}_auto_s_per_s": auto["s_per_s"],
            f"{scale}_auto_speedup": theirs / auto["s_per_s"],
        }
        del model
    return figures


def accuracy_section(_quick: bool) -> dict[str, object]:
    """Compare `auto`'s guided logits with those of `exact` over 40 steps of `small`'s shape."""
    from bench import accuracy, engine

    return accuracy.compare(engine.load("small"), "auto", num_steps=40)


def codec_section(quick: bool) -> dict[str, object]:
    """Compare the codec in pieces with transformers' decoding of the whole, with one thread and with two."""
    from bench import codec

    return {
        figure: value
        for num_threads in (1, 2)
        for figure, value in codec.seconds_per_second(num_threads, 1.0 if quick else 10.0, 4).items()
    }


def controls_section(quick: bool) -> dict[str, object]:
    """Compare requests that have controls with the plain one, on the shape of `small`."""
    from bench import controls, engine

    return controls.costs(engine.load("small"), 1.0 if quick else 10.0, 2 if quick else 5)


def long_section(quick: bool) -> dict[str, object]:
    """Generate 300 seconds on the shape of `small`, or 36 with `quick`."""
    from bench import controls, engine

    return controls.long_piece(engine.load("small"), 36.0 if quick else 300.0)


def loops_section(quick: bool) -> dict[str, object]:
    """Count how often the demo model makes a loop at a tempo."""
    from bench import loops

    return loops.successes(1 if quick else 4)


def http_section(_quick: bool) -> dict[str, object]:
    from bench import http

    return {**http.single_and_eight("small"), **http.cold_start("small")}


def service_section(quick: bool) -> dict[str, object]:
    from bench import service

    return {
        **service.overhead(20 if quick else 100),
        **service.cached_result(20 if quick else 100),
        **service.health_under_load(5.0 if quick else 15.0),
    }


def tasks_section(quick: bool) -> dict[str, object]:
    from bench import tasks

    return {
        **tasks.accepts(2000 if quick else 5000),
        **tasks.polls(5.0 if quick else 15.0),
        **tasks.full_queue(2000 if quick else 10_000),
        **tasks.idle_connections(20),
        **tasks.soak(1000 if quick else 10_000),
    }


def compat_section(quick: bool) -> dict[str, object]:
    from bench import compat

    return compat.overhead(50 if quick else 300)


def limits_section(quick: bool) -> dict[str, object]:
    from bench import limits

    return {
        **limits.exact_in_memory(),
        **limits.exact_in_redis(),
        **limits.overhead(50 if quick else 300),
        **limits.refusals(5.0 if quick else 15.0),
    }


def live_section(quick: bool) -> dict[str, object]:
    """Measure 1, 2 and 4 live sessions of the demo model and of `small`'s shape, beside two requests."""
    from bench import live, shapes

    figures: dict[str, object] = {}
    models = {"demo": ("demo", 10.0 if quick else 40.0), "small": (shapes.checkpoint("small"), 10.0 if quick else 20.0)}
    for name, (model, seconds) in models.items():
        for num_sessions in (1,) if quick else (1, 2, 4):
            figures |= live.sessions(model, num_sessions, seconds, f"live_{name}_{num_sessions}")
    return figures


SEPARATE = {"long"}  # measured only by name, because it takes ten minutes

# Of each section: its function, and the programs that it runs.
SECTIONS: dict[str, tuple[Callable[[bool], dict[str, object]], tuple[str, ...]]] = {
    "engine": (engine_section, ()),
    "codec": (codec_section, ()),
    "accuracy": (accuracy_section, ()),
    "controls": (controls_section, ()),
    "long": (long_section, ()),
    "loops": (loops_section, ()),
    "http": (http_section, ()),
    "service": (service_section, ()),
    "tasks": (tasks_section, ()),
    "live": (live_section, ()),
    "compat": (compat_section, ()),
    "limits": (limits_section, ("redis-server",)),
}

if __name__ == "__main__":
    main()
