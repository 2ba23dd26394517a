"""Whatever JSON a client sends to a compatible route, the response is not a server error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st

from audiocraft_api.web.compat import elevenlabs, huggingface, openai, predictions
from audiocraft_api.web.compat.composition_plan import Chunk, Plan, Section
from support.fakes import ShortEngine
from support.http import fake_app

TRANSLATIONS = (openai.SPEECH, huggingface.TEXT_TO_AUDIO, elevenlabs.MUSIC, elevenlabs.SOUND, predictions.INPUT)
ROUTES = (
    *("/v1/audio/music", "/v1/audio/speech", "/hf/small", "/v1/music", "/v1/music/stream", "/v1/music/detailed"),
    *("/v1/music/plan", "/v1/sound-generation", "/predictions", "/v1/predictions", "/v1/models/a/musicgen/predictions"),
)
NUM_CASES = 80

plans = {name for schema in (Plan, Section, Chunk) for name in schema.model_fields}
names = st.sampled_from(
    sorted(
        {name for translation in TRANSLATIONS for name in (*translation.fields, *translation.accepted)}
        | {"composition_plan", "parameters", "stream", "webhook", "input_audio", "continuation", "continuation_end"}
        | {"bpm", "store_for_inpainting", *plans}
    )
)
texts = st.sampled_from(["cello", "", "demo", "music_v2", "mp3", "data:;base64,x", "\ud800", "1"])
scalars = st.none() | st.booleans() | st.sampled_from([0, 1, -1, 2.5, 3000, 10**30]) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4))
likely = {"prompt": "cello", "input": {"prompt": "cello", "duration": 1}, "inputs": "cello", "text": "rain"}
bodies = st.dictionaries(names, values, max_size=5)


def test_no_body_is_a_server_error(tmp_path: Path) -> None:
    client = fake_app(tmp_path, ShortEngine(), log_level="ERROR").test_client()
    statuses: set[int] = set()

    @hypothesis.settings(max_examples=NUM_CASES, deadline=None, derandomize=True, database=None)
    @hypothesis.given(st.sampled_from(ROUTES), bodies, st.sampled_from(["", "?output_format=pcm_8000"]), st.booleans())
    def send(route: str, body: dict[str, Any], query: str, is_likely: bool) -> None:
        given = {**body, **likely} if is_likely else body
        headers = {"Prefer": "respond-async"}
        response = client.post(route + query, json=given, headers=headers, buffered=True)
        statuses.add(response.status_code)
        assert response.status_code < 500, (route, given, response.get_data()[:300])

    send()
    assert {200, 201, 400, 422} <= statuses
