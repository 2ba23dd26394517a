"""An app with a fake engine that produces audio in blocks of a tenth of a second, for tests of streaming.

Run it with `gunicorn -c gunicorn.conf.py support.streamed:app`. The prompt controls the engine: `fail after 3` makes
the generation fail after 3 blocks; `hold after 0` pauses it before the first block until the file named by
`AUDIOCRAFT_TEST_HOLD` is deleted; `wait at 2` waits for that at the second place in the queue.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from audiocraft_api.config import load_config
from audiocraft_api.core.engine import QueuePlace
from audiocraft_api.core.errors import AudioCraftError, GenerationFailed
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.factory import create_app
from support.fakes import FRAME_RATE, SAMPLE_RATE, FakeCache, block
from support.live import LiveEngine
from support.served import FileGate

BLOCK_FRAMES = 5


class BlockEngine(LiveEngine):
    """Generates a stereo tone block by block, also live."""

    def queue_place(self, request: EngineRequest) -> QueuePlace | None:
        place = re.fullmatch(r"wait at (\d+)", request.params.description)
        return QueuePlace(int(place[1]), 12.3456) if place and request.state == "waiting" else None

    def _run(self, request: EngineRequest) -> None:
        while self.queue_place(request) and not self.gate.wait(0.01):
            if request.should_stop:
                break
        num_frames = round(request.params.duration_seconds * FRAME_RATE)
        event = re.fullmatch(r"(fail|hold) after (\d+)", request.params.description)
        request.start(num_frames, sample_rate=SAMPLE_RATE, frame_rate=FRAME_RATE, revision="fake", precision="exact")
        try:
            if self.failure is not None:
                raise self.failure
            for number, start in enumerate(range(0, num_frames, BLOCK_FRAMES)):
                if event and number == int(event[2]):
                    self._apply_event(event[1], request)
                request.raise_if_stopped()
                request.push(block(start, min(start + BLOCK_FRAMES, num_frames)))
                request.advance(min(start + BLOCK_FRAMES, num_frames))
            request.finish()
        except AudioCraftError as error:
            request.fail(error)

    def _apply_event(self, event: str, request: EngineRequest) -> None:
        if event == "fail":
            raise GenerationFailed("The generation failed.")
        while not self.gate.wait(0.01):
            request.raise_if_stopped()


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(name)
    engine = BlockEngine(gate=FileGate(Path(os.environ["AUDIOCRAFT_TEST_HOLD"])))
    return create_app(load_config(), engine=engine, cache=FakeCache())
