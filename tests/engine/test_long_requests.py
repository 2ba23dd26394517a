"""Requests of several windows: audiocraft's tokens, whatever runs next to them, and no short request waits for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiocraft_api.config import Config
from audiocraft_api.core.errors import Canceled
from audiocraft_api.engine.plain import PlainEngine
from support.engines import (
    SECONDS,
    LoadedModels,
    codes_engine,
    eager_runner,
    params,
    short_window_model,
    wait_for_codes,
)

LONG = {"duration_seconds": 20.0, "extend_stride_seconds": 18.0}  # two windows of 19 s


@pytest.fixture
def short_windows(demo_checkpoints: Path) -> LoadedModels:
    return LoadedModels(lambda name: short_window_model(demo_checkpoints, name))


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "auto"},
        pytest.param({}, marks=pytest.mark.fault),
        pytest.param({"model_runner_factory": eager_runner}, marks=pytest.mark.fault),
    ],
)
def test_a_short_request_waits_for_one_window_of_a_long_one(
    short_windows: LoadedModels, settings: dict[str, Any]
) -> None:
    alone = codes_engine(short_windows, max_batch_requests=1, **settings)
    expected = wait_for_codes(alone.submit(params(**LONG)))
    alone.close()

    engine = codes_engine(short_windows, max_batch_requests=1, **settings)
    long = engine.submit(params(**LONG))
    short = engine.submit(params(duration_seconds=1.0))
    ends: list[str] = []
    long.add_done_callback(lambda _: ends.append("long"))
    short.add_done_callback(lambda _: ends.append("short"))

    np.testing.assert_array_equal(wait_for_codes(long), expected)
    assert ends == ["short", "long"]
    assert long.progress == (1000, 1000)
    engine.close()


@pytest.mark.fault
def test_the_window_after_a_pause_gives_audiocrafts_tokens(short_windows: LoadedModels) -> None:
    engine = codes_engine(short_windows, max_batch_requests=1)
    case = params(**LONG, top_p=0.9)
    requests = [engine.submit(case), engine.submit(params(duration_seconds=1.0))]
    codes, _ = [wait_for_codes(request) for request in requests]
    engine.close()

    # The plain engine also decodes long audio in blocks, because memory grows with the length.
    plain = PlainEngine(short_windows, Config().engine)  # type: ignore[arg-type, call-arg]
    waveform = plain.submit(case).result(SECONDS).waveform
    with short_windows.lease("demo") as model:
        np.testing.assert_allclose(waveform, model.decode_codes(torch.from_numpy(codes)[None]).numpy(), atol=1e-5)
    plain.close()


def test_a_long_request_between_two_windows_can_be_canceled(short_windows: LoadedModels) -> None:
    engine = codes_engine(short_windows, max_batch_requests=1)
    long = engine.submit(params(**LONG))
    short = engine.submit(params(duration_seconds=5.0))
    # The short request runs while the long one is paused.
    next(short.chunks())
    long.cancel()
    with pytest.raises(Canceled):
        wait_for_codes(long)
    assert wait_for_codes(short).shape == (4, 250)
    engine.close()


@pytest.mark.parametrize("seconds", [60, pytest.param(300, marks=pytest.mark.fault)])
def test_minutes_have_the_right_length_and_progress_over_the_whole(seconds: int, cache: LoadedModels) -> None:
    engine = codes_engine(cache, precision="auto")
    request = engine.submit(params(duration_seconds=float(seconds)))
    num_frames = 50 * seconds
    progress = []
    for _ in request.chunks():
        progress.append(request.progress[0])
    assert wait_for_codes(request).shape == (4, num_frames)
    assert request.progress == (num_frames, num_frames)
    assert progress == sorted(progress)
    engine.close()
