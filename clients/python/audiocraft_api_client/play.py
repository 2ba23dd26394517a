"""Plays audio on this machine, with the optional packages sounddevice and soundfile."""

from __future__ import annotations

import io


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
