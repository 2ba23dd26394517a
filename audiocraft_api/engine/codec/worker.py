"""The codec's thread of one model: decodes the codes of running requests to audio blocks, in parallel with the loop."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from audiocraft_api.core.errors import AudioCraftError
from audiocraft_api.engine.codec.decoder import ChunkCodec
from audiocraft_api.engine.failures import as_request_error
from audiocraft_api.engine.sequence import Sequence

Job = tuple[Sequence, Tensor, bool]  # codes [K, t]; whether they are the last


class CodecWorker:
    """Decodes all queued codes together. The number of requests that the loop admits bounds the queue."""

    def __init__(
        self,
        get_codec: Callable[[], ChunkCodec],
        device: torch.device,
        on_last: Callable[[Sequence], None],
    ) -> None:
        """`get_codec` builds the codec on its first call. It and `on_last` are called in the codec's thread.

        `on_last(seq)` is called after the last codes of a sequence, when its request has ended.
        """
        self._get_codec = get_codec
        self._device = device
        self._on_last = on_last
        self._jobs: deque[Job] = deque()
        self._condition = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._main, name="engine-codec", daemon=True)
        self._is_started = False

    def ensure_started(self) -> None:
        """Start the thread, which builds the codec, unless it was started before."""
        if not self._is_started:
            self._is_started = True
            self._thread.start()

    def put(self, seq: Sequence, codes: Tensor, is_last: bool) -> None:
        """Queue codes for decoding."""
        with self._condition:
            self._jobs.append((seq, codes, is_last))
            self._condition.notify()
        self.ensure_started()

    def close(self) -> None:
        """Decode what is queued, and stop the thread."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        if self._is_started:
            self._thread.join()

    def _main(self) -> None:
        # A CUDA stream of its own, so that the codec and the steps do not wait for each other.
        stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            self._decode([])  # builds the codec; if that fails, the first request reports it
            while jobs := self._next_jobs():
                self._decode(jobs)
                for seq, _, is_last in jobs:
                    if is_last:
                        self._on_last(seq)

    def _next_jobs(self) -> list[Job]:
        """Wait for jobs, then remove and return the first job of each sequence; return an empty list when closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._jobs or self._closing)
            taken: dict[Sequence, Job] = {}
            later: deque[Job] = deque()
            for job in self._jobs:
                if job[0] in taken:
                    later.append(job)
                else:
                    taken[job[0]] = job
            self._jobs = later
            return list(taken.values())

    def _decode(self, jobs: list[Job]) -> None:
        jobs = [job for job in jobs if not _has_ended(job[0])]
        try:
            codec = self._get_codec()
            for seq, _, _ in jobs:
                seq.decoder = seq.decoder or codec.new_decoder()
            blocks = codec.feed_many([(seq.decoder, codes, is_last) for seq, codes, is_last in jobs])
            for (seq, codes, is_last), block in zip(jobs, blocks, strict=True):
                seq.request.add_codes(codes.numpy().astype(np.uint16))
                if block.shape[1]:
                    seq.request.push(block)
                if is_last:
                    seq.request.finish()
        except Exception as error:  # noqa: BLE001 - every caller gets an error
            for seq, _, _ in jobs:
                seq.request.fail(as_request_error(error))


def _has_ended(seq: Sequence) -> bool:
    """Return whether a request has ended, and end it first if it was canceled or is past its deadline."""
    try:
        seq.request.raise_if_stopped()
    except AudioCraftError as error:
        seq.request.fail(error)
    return seq.request.has_ended
