"""Decodes uploads in tests."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiocraft_api.audio import upload_decoder
from audiocraft_api.audio.upload import UploadDecoder
from audiocraft_api.config import load_config
from audiocraft_api.core.errors import InvalidMelody
from audiocraft_api.core.params import AudioInput

DECODER = Path(upload_decoder.__file__)
MAX_SECONDS = 60.0


def make_decoder(program: Path = DECODER, queue_timeout_seconds: float | None = None, **settings: Any) -> UploadDecoder:
    """Return the service's decoder with `settings`."""
    config = load_config({}, **settings).audio
    return UploadDecoder(config, program=program, queue_timeout_seconds=queue_timeout_seconds)


def decode(data: bytes, **options: Any) -> AudioInput:
    """Decode an upload as the service does; `options` as for `make_decoder`."""
    return make_decoder(**options).decode(io.BytesIO(data))


def refusal(data: bytes, **options: Any) -> str:
    """Return the message that an upload is refused with."""
    with pytest.raises(InvalidMelody) as caught:
        decode(data, **options)
    assert caught.value.errors == {"melody": [caught.value.message]}
    return caught.value.message


def melody_refusal(data: bytes, **options: Any) -> str:
    """Return the message that a melody, a recording or a MIDI file, is refused with."""
    with pytest.raises(InvalidMelody) as caught:
        make_decoder(**options).decode_melody(io.BytesIO(data))
    assert caught.value.errors == {"melody": [caught.value.message]}
    return caught.value.message


def decode_here(data: bytes) -> AudioInput:
    """Decode with the child's function in this process, which takes a tenth of the time. Raises its `Refused`."""
    samples = io.BytesIO()
    with tempfile.TemporaryFile() as source:
        source.write(data)
        source.seek(0)
        sample_rate, channels = upload_decoder.decode(source.fileno(), samples, MAX_SECONDS)
    interleaved = np.frombuffer(samples.getvalue(), np.float32).reshape(-1, channels)
    return AudioInput(np.ascontiguousarray(interleaved.T), sample_rate)


def seconds_of(audio: AudioInput) -> float:
    """Return the duration."""
    return audio.waveform.shape[1] / audio.sample_rate
