"""Plays audio on this machine, with the optional packages sounddevice and soundfile."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from audiocraft_api_client.models import StartedAnswer


def require_player() -> None:
    """Raise an error if this machine cannot play audio."""
    try:
        import sounddevice  # noqa: F401
        import soundfile  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: PortAudio is not installed
        raise RuntimeError(f"Cannot play audio: {error}. Run: pip install sounddevice soundfile") from error


def play(audio: bytes) -> None:
    """Play an audio file and return when it has ended. Needs the packages sounddevice and soundfile."""
    require_player()
    import sounddevice
    import soundfile

    samples, sample_rate = soundfile.read(io.BytesIO(audio), dtype="float32")
    sounddevice.play(samples, sample_rate, blocking=True)


class LivePlayer:
    """Plays the audio of a live session while it arrives."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream  # a sounddevice.RawOutputStream

    def write(self, block: bytes) -> None:
        """Play a block; waits while the buffer of the sound device is full."""
        self._stream.write(block)

    def seek_back(self, _frame: int) -> None:
        """Drop what is not yet heard."""
        self._stream.abort()
        self._stream.start()


@contextmanager
def open_player(started: StartedAnswer) -> Iterator[LivePlayer]:
    """Open the sound device for a live session. Leaving the context plays the rest. Needs sounddevice."""
    require_player()
    import sounddevice

    with sounddevice.RawOutputStream(started.sample_rate, channels=started.channels, dtype="int16") as stream:
        yield LivePlayer(stream)
