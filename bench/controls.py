"""What each control costs beside the plain request, and what a long piece takes: time, memory, even levels."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from audiocraft_api.core.constants import DEFAULT_EXTEND_STRIDE_SECONDS, FRAME_RATE, WINDOW_SECONDS
from audiocraft_api.core.params import AudioInput, Codes, GenerationParams, Segment
from audiocraft_api.engine.batching import BatchingEngine
from bench.engine import DESCRIPTION, WARMUP_SECONDS, opened_engine, params

NEGATIVE = "vocals, distorted guitars, crowd noise"
NUM_SEGMENTS = NUM_VARIATIONS = 4
GIVEN_SECONDS = 10.0  # of audio that is continued


def costs(model: Any, seconds: float, num_turns: int) -> dict[str, object]:
    """Return the time of the plain request, and the times of the others in relation to it. Each has `seconds` new.

    The requests take turns, so that the machine is in the same state for all. A ratio is the median over the turns.
    """
    cases = _cases(model, seconds)
    times: dict[str, list[float]] = {name: [] for name in cases}
    with opened_engine(model, "auto", max_batch_requests=NUM_VARIATIONS) as engine:
        for case in cases.values():
            _run(engine, case)
        for _ in range(num_turns):
            for name, case in cases.items():
                times[name].append(_run(engine, case))
    plain = times.pop("plain")
    figures: dict[str, object] = {"controls_plain_s_per_s": statistics.median(plain) / seconds}
    for name, each in times.items():
        ratios = [one / of_plain for one, of_plain in zip(each, plain, strict=True)]
        figures[f"controls_{name}_ratio"] = statistics.median(ratios)
    return figures


def long_piece(model: Any, seconds: float) -> dict[str, object]:
    """Return the time, the memory, the first audio and the levels of one piece of several windows."""
    short = params(model, WARMUP_SECONDS)
    with opened_engine(model, "auto") as engine:
        _run(engine, [short])
        short_first = _first_audio(engine, short)[0]
        before = _reset_peak()
        begin = time.perf_counter()
        long_first, result = _first_audio(engine, replace(short, duration_seconds=seconds))
        num_seconds = time.perf_counter() - begin
        peak = _memory("VmHWM")
    return {
        "long_audio_seconds": seconds,
        "long_s_per_s": num_seconds / seconds,
        "long_memory_mib": None if before is None or peak is None else peak - before,
        "long_first_audio_seconds": long_first,
        "short_first_audio_seconds": short_first,
        **border_levels(result.waveform, result.sample_rate, DEFAULT_EXTEND_STRIDE_SECONDS),
    }


def border_levels(waveform: npt.NDArray[np.float32], sample_rate: int, stride_seconds: float) -> dict[str, object]:
    """Return how much the level [dB] changes from second to second: across borders of windows, and elsewhere.

    A border is where a window's new audio begins: after 30 seconds, and then every `stride_seconds`, whole seconds.
    """
    num_seconds = waveform.shape[1] // sample_rate
    by_second = waveform[:, : num_seconds * sample_rate].reshape(waveform.shape[0], num_seconds, sample_rate)
    levels = 10 * np.log10(np.mean(np.square(by_second, dtype=np.float64), axis=(0, 2)) + 1e-10)
    steps = np.abs(np.diff(levels))  # [n]: from second n to second n + 1
    is_border = np.isin(np.arange(1, num_seconds), np.arange(WINDOW_SECONDS, num_seconds, stride_seconds))
    borders, others = steps[is_border], steps[~is_border]
    return {
        "long_num_borders": len(borders),
        "long_border_step_db": float(borders.mean()),
        "long_border_step_max_db": float(borders.max()),
        "long_other_step_db": float(others.mean()),
        "long_other_step_max_db": float(others.max()),
    }


def _cases(model: Any, seconds: float) -> dict[str, list[GenerationParams]]:
    plain = params(model, seconds)
    length = seconds / NUM_SEGMENTS
    segments = tuple(Segment(f"{DESCRIPTION}, part {number}", length) for number in range(NUM_SEGMENTS))
    samples = 0.2 * np.random.default_rng(0).random((1, int(GIVEN_SECONDS * model.sample_rate)), np.float32)
    shape = model.num_codebooks, int(GIVEN_SECONDS * FRAME_RATE)
    tokens = np.random.default_rng(0).integers(0, model.codebook_size, shape, np.uint16)
    continued = replace(plain, duration_seconds=GIVEN_SECONDS + seconds)
    with_codes = AudioInput(samples, model.sample_rate, Codes(tokens, model.codec_digest))
    return {
        "plain": [plain],
        "negative_prompt": [replace(plain, negative_description=NEGATIVE)],
        "segments": [replace(plain, segments=segments)],
        "variations": [replace(plain, seed=seed) for seed in range(NUM_VARIATIONS)],
        "continuation": [replace(continued, audio_prompt=AudioInput(samples, model.sample_rate))],
        "continuation_of_codes": [replace(continued, audio_prompt=with_codes)],
    }


def _run(engine: BatchingEngine, cases: Sequence[GenerationParams]) -> float:
    """Run requests together, with codec; return their time in seconds."""
    begin = time.perf_counter()
    for request in [engine.submit(case) for case in cases]:
        request.result()
    return time.perf_counter() - begin


def _first_audio(engine: BatchingEngine, case: GenerationParams) -> tuple[float, Any]:
    """Return the seconds until the first audio, and the result."""
    begin = time.perf_counter()
    request = engine.submit(case)
    next(request.chunks())
    return time.perf_counter() - begin, request.result()


def _reset_peak() -> float | None:
    """Set the peak of this process's memory to its current memory in MiB, and return that; None if it cannot be set."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return _memory("VmRSS")
    return None


def _memory(name: str) -> float | None:
    """Return a figure of this process's memory in MiB; None if the system has none."""
    with suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        return int(found[1]) / 1024 if found else None
    return None
