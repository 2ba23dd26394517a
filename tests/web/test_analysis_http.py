"""The analysis of audio over HTTP: where it appears. The engine is a fake, whose tone is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask.testing import FlaskClient

from audiocraft_api.tasks.view import AnalysisResponse
from support.http import assert_error, fake_app, generate, melody_file
from support.tasks import submit, wait_for

TONE_LUFS = -23.7  # mono, 440 Hz, -20 dBFS


def test_the_response_has_the_analysis_on_request_only(client: FlaskClient) -> None:
    assert "analysis" not in generate(client).json
    for return_type in ("url", "base64"):
        body = generate(client, analysis=True, return_type=return_type).json
        assert set(body["analysis"]) == set(AnalysisResponse.model_fields)
        assert body["analysis"]["loudness_lufs"] == pytest.approx(TONE_LUFS, abs=0.3)
        assert body["analysis"]["true_peak_dbtp"] == pytest.approx(-20, abs=0.3)
        assert "analysis" not in body["recipe"]


def test_the_result_of_a_task_and_each_variation_have_the_analysis(client: FlaskClient) -> None:
    result = wait_for(client, submit(client, duration=1, n=2, analysis=True))["result"]
    assert result["analysis"] == result["variations"][0]["analysis"]
    assert "analysis" in result["variations"][1]
    assert "analysis" not in wait_for(client, submit(client, duration=1))["result"]


def test_the_finished_audio_is_analyzed(client: FlaskClient) -> None:
    body = generate(client, analysis=True, loudness=-30).json
    assert body["analysis"]["loudness_lufs"] == pytest.approx(-30, abs=0.1)


def test_a_form_has_the_field(client: FlaskClient) -> None:
    form = {"prompt": "cello", "duration": "1", "analysis": "true", "melody": (melody_file(), "m.wav")}
    assert client.post("/generate-with-melody", data=form).json["analysis"]["clipped_samples"] == 0


def test_streams_refuse_the_field(client: FlaskClient) -> None:
    response = client.post("/generate-stream", json={"prompt": "solo cello", "analysis": True})
    assert_error(response, 400, "invalid_request", "analysis")


def test_cached_audio_has_its_analysis(tmp_path: Path) -> None:
    client = fake_app(tmp_path, result_cache_entries=10).test_client()
    made, cached = (generate(client, seed=1, analysis=True).json for _ in range(2))
    assert cached["cached"]
    assert cached["analysis"] == made["analysis"]
    assert "analysis" not in generate(client, seed=1).json
