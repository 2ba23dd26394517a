"""Plays audio on this machine, with the optional packages sounddevice and soundfile."""

from __future__ import annotations

import io


def play(audio: bytes) -> None:
    """Play an audio file and return when it has ended. Needs `pip install "audiocraft-api-client[play]"`."""
    try:
        import sounddevice
        import soundfile
    except (ImportError, OSError) as error:  # OSError: PortAudio is not installed
        message = f'Cannot play audio: {error}. Run: pip install "audiocraft-api-client[play]"'
        raise RuntimeError(message) from error
    samples, sample_rate = soundfile.read(io.BytesIO(audio), dtype="float32")
    sounddevice.play(samples, sample_rate, blocking=True)
