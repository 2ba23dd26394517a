"""A fake engine that plays live: a tone, as far as it is allowed, with changes at the next frame."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flask import Flask
from werkzeug.serving import make_server

from audiocraft_api.core.errors import AudioCraftError
from audiocraft_api.core.live_request import LiveRequest
from audiocraft_api.core.performance import Change
from support.fakes import FRAME_RATE, SAMPLE_RATE, FakeEngine, Gate, block
from support.http import fake_app

TIMEOUT_SECONDS = 60.0
MOST_FRAMES = 5  # of a block


class LiveEngine(FakeEngine):
    """Generates a stereo tone in short blocks, in one thread for each request."""

    def __init__(self, gate: Gate | None = None) -> None:
        super().__init__(gate)
        self.live: list[LiveRequest] = []

    def submit_live(self, request: LiveRequest) -> None:
        self.live.append(request)
        thread = threading.Thread(target=self._play, args=(request,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _play(self, request: LiveRequest) -> None:
        assert request.params.performance is not None
        limit = request.params.performance.num_frames
        request.start(limit, sample_rate=SAMPLE_RATE, frame_rate=FRAME_RATE, revision="fake", precision="exact")
        pause, frame = threading.Event(), 0
        while not (request.is_stopping or request.should_stop or self.failure) and frame < limit:
            while (draft := request.next_draft()) is not None:
                frame_of_change = max(frame, request.changes[-1].frame + 1)
                change = Change(frame_of_change, draft.controls, draft.transition_frames, draft.resets_context)
                request.settle(draft, change)
            if frame >= request.num_frames_allowed:
                pause.wait(0.002)
                continue
            start, frame = frame, min(frame + MOST_FRAMES, limit, request.num_frames_allowed)
            request.push(block(start, frame))
            request.advance(frame)
        try:
            request.raise_if_stopped()
            if self.failure is not None:
                raise self.failure
            request.finish()
        except AudioCraftError as error:
            request.fail(error)


@contextmanager
def playing(directory: Path, **settings: Any) -> Iterator[tuple[int, LiveEngine, Flask]]:
    """Serve an app whose engine plays a tone; yield its port, the engine and the app."""
    engine = LiveEngine()
    app = fake_app(directory, engine, **settings)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, engine, app
    finally:
        server.shutdown()
        thread.join(TIMEOUT_SECONDS)
        server.server_close()
        engine.close()
