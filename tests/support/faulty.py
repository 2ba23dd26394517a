"""An app for gunicorn whose engine fails as the prompt says: `support.faulty:app`.

`poison` kills the process; `no model`, `out of memory once` (for each seed) and `out of memory` raise; `not a number`
makes audio of NaN. Every other request takes a moment.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np

from audiocraft_api.config import load_config
from audiocraft_api.core.errors import ModelUnavailable, OutOfMemory
from audiocraft_api.core.params import Waveform
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.factory import create_app
from support.fakes import FakeCache, FakeEngine
from support.served import FileGate

RETRY_SECONDS = 0.1


class FaultyEngine(FakeEngine):
    """A fake engine that fails on demand."""

    def __init__(self) -> None:
        super().__init__(FileGate(Path(os.environ["AUDIOCRAFT_TEST_HOLD"])))
        self._seen: set[int] = set()

    def _run(self, request: EngineRequest) -> None:
        match request.params.description:
            case "poison":
                os.kill(os.getpid(), signal.SIGKILL)
            case "no model":
                request.fail(ModelUnavailable("The model cannot be loaded.", RETRY_SECONDS))
            case "out of memory":
                request.fail(OutOfMemory("There is not enough memory.", RETRY_SECONDS))
            case "out of memory once" if request.params.seed not in self._seen:
                self._seen.add(request.params.seed)
                request.fail(OutOfMemory("There is not enough memory.", RETRY_SECONDS))
            case _:
                threading.Event().wait(random.uniform(0.02, 0.25))
        super()._run(request)

    def _audio(self, request: EngineRequest, num_samples: int) -> Waveform:
        audio = super()._audio(request, num_samples)
        return audio * np.float32(np.nan) if request.params.description == "not a number" else audio


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(name)
    return create_app(load_config(), engine=FaultyEngine(), cache=FakeCache())
