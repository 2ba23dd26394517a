"""The codec's thread of one model: codes of running requests in, waveform blocks to their callers out, beside decoding."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from torch import Tensor

from audiocraft_api.engine.codec import ChunkDecoderFactory
from audiocraft_api.engine.running import RunningRequest
from audiocraft_api.engine.stepper import as_request_error

Job = tuple[RunningRequest, Tensor, bool]  # codes [K, t]; whether they are the last


class CodecWorker:
    """Decodes in order of arrival. The queue holds at most the codes of the requests that the loop has admitted."""

    def __init__(self, factory: ChunkDecoderFactory, on_last: Callable[[RunningRequest], None]) -> None:
        """`on_last(request)` is called, in this thread, after a request's last codes, when it has ended."""
        self._factory = factory
        self._on_last = on_last
        self._jobs: deque[Job] = deque()
        self._condition = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="engine-codec", daemon=True)
        self._thread.start()

    def put(self, run: RunningRequest, codes: Tensor, last: bool) -> None:
        with self._condition:
            self._jobs.append((run, codes, last))
            self._condition.notify()

    def close(self) -> None:
        """Finish what is queued and stop."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    return
                run, codes, last = self._jobs.popleft()
            self._decode(run, codes, last)

    def _decode(self, run: RunningRequest, codes: Tensor, last: bool) -> None:
        try:
            run.request.check()
            if run.decoder is None:
                run.decoder = self._factory.open()
            block = run.decoder.feed(codes, last)
            if block.shape[1]:
                run.request.push(block)
            if last:
                run.request.finish()
        except Exception as error:  # noqa: BLE001
            run.request.fail(as_request_error(error))
        if last:
            self._on_last(run)
