"""The codec's thread of one model: codes of running requests in, waveform blocks to their callers out, beside decoding."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from audiocraft_api.core.errors import AudioCraftError
from audiocraft_api.engine.codec.decoder import ChunkDecoderFactory
from audiocraft_api.engine.failures import as_request_error
from audiocraft_api.engine.sequence import RunningRequest

Job = tuple[RunningRequest, Tensor, bool]  # codes [K, t]; whether they are the last


class CodecWorker:
    """Decodes what waits, together. The queue holds at most the codes of the requests that the loop has admitted."""

    def __init__(
        self,
        make_factory: Callable[[], ChunkDecoderFactory],
        device: torch.device,
        on_last: Callable[[RunningRequest], None],
    ) -> None:
        """`make_factory` prepares the codec, and does so once; it is called in this thread.

        `on_last(request)` is called, in this thread, after a request's last codes, when it has ended."""
        self._make_factory = make_factory
        self._device = device
        self._on_last = on_last
        self._jobs: deque[Job] = deque()
        self._condition = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="engine-codec", daemon=True)
        self._has_begun = False

    def begin(self) -> None:
        """Prepare the codec, if that has not begun."""
        if not self._has_begun:
            self._has_begun = True
            self._thread.start()

    def put(self, run: RunningRequest, codes: Tensor, last: bool) -> None:
        """Have codes decoded."""
        with self._condition:
            self._jobs.append((run, codes, last))
            self._condition.notify()
        self.begin()

    def close(self) -> None:
        """Finish what is queued and stop, if it has begun."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        if self._has_begun:
            self._thread.join()

    def _work(self) -> None:
        # A stream of its own: the codec must not wait for steps, nor they for it.
        stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            self._decode([])  # prepares the codec; should that fail, the first request is told
            while jobs := self._next():
                self._decode(jobs)
                for run, _, last in jobs:
                    if last:
                        self._on_last(run)

    def _next(self) -> list[Job]:
        """Wait for jobs and take the first of every request that has one; none when closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._jobs or self._closing)
            taken: dict[RunningRequest, Job] = {}
            later: deque[Job] = deque()
            for job in self._jobs:
                if job[0] in taken:
                    later.append(job)
                else:
                    taken[job[0]] = job
            self._jobs = later
            return list(taken.values())

    def _decode(self, jobs: Sequence[Job]) -> None:
        jobs = [job for job in jobs if not _stopped(job[0])]
        try:
            factory = self._make_factory()
            for run, _, _ in jobs:
                run.decoder = run.decoder or factory.open()
            blocks = factory.feed_many([(run.decoder, codes, last) for run, codes, last in jobs])
            for (run, _, last), block in zip(jobs, blocks, strict=True):
                if block.shape[1]:
                    run.request.push(block)
                if last:
                    run.request.finish()
        except Exception as error:  # noqa: BLE001
            for run, _, _ in jobs:
                run.request.fail(as_request_error(error))


def _stopped(run: RunningRequest) -> bool:
    """Say whether nobody wants more of a request, and end it when it was canceled."""
    try:
        run.request.raise_if_stopped()
    except AudioCraftError as error:
        run.request.fail(error)
    return run.request.has_ended
