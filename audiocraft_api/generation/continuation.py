"""Which part of a recording a generation continues, and which part of its result is new. Knows no engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from audiocraft_api.core.constants import FRAME_RATE, MIN_CONTINUED_SECONDS
from audiocraft_api.core.errors import InvalidRequest
from audiocraft_api.core.params import AudioInput, Codes, GenerationParams, seconds_of
from audiocraft_api.core.request import GenerationResult
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.generation.recipe import audio_digest, codes_digest

_EPSILON_FRAMES = 1e-3  # times are rounded to microseconds
_TOLERANCE_SECONDS = 0.1  # between the lengths of a file and of its codes


@dataclass(frozen=True)
class Part:
    """The part of a recording that a client asks for, in seconds; None means the default."""

    start: float | None = None
    end: float | None = None

    def check(self, window_seconds: float) -> None:
        """Raise InvalidRequest if no recording has such a part, or if no window has room for more."""
        if self.start is None or self.end is None:
            return
        if self.end - self.start < MIN_CONTINUED_SECONDS:
            raise _refusal("end", f"end must be at least {MIN_CONTINUED_SECONDS:g} seconds after start.")
        if self.end - self.start >= window_seconds:
            raise _refusal("start", _too_long(window_seconds))


def with_codes(audio: AudioInput, codes: Codes | None) -> AudioInput:
    """Return the audio of a file with the codes that are stored beside it, if there are any and both are as long.

    Encoders of lossy formats add or drop a few milliseconds; the waveform gets the exact length of the codes.
    """
    num_samples = audio.waveform.shape[1]
    if codes is None or abs(num_samples / audio.sample_rate - codes.tokens.shape[1] / FRAME_RATE) > _TOLERANCE_SECONDS:
        return audio
    wanted = round(codes.tokens.shape[1] * audio.sample_rate / FRAME_RATE)
    samples = np.pad(audio.waveform, ((0, 0), (0, max(0, wanted - num_samples))))[:, :wanted]
    return AudioInput(samples, audio.sample_rate, codes)


def continued(
    command: GenerateCommand, audio: AudioInput, part: Part, *, include_input: bool, window_seconds: float
) -> GenerateCommand:
    """Return a command that continues a part of a recording. Raises InvalidRequest.

    The part ends at the end of the recording, or at `part.end`. By default it is as long as the model's window permits
    beside the new audio, and at least as long as what a window takes over from the one before.

    It consists of whole frames. Otherwise the codec would fill its last frame with silence, which would be audible.
    With codes, it also ends with a frame.
    """
    length = audio.waveform.shape[1] / audio.sample_rate
    end = min(length, length if part.end is None else part.end)
    if audio.codes is not None:
        end = round(end * FRAME_RATE) / FRAME_RATE
    if part.end is not None and part.end > length + 1 / FRAME_RATE:
        raise _refusal("end", f"end must be at most {length:.3f}, the duration of the audio.")
    longest = window_seconds - min(command.duration_seconds, command.extend_stride_seconds)
    start = max(0.0, end - longest) if part.start is None else part.start
    num_frames = int((end - start) * FRAME_RATE + _EPSILON_FRAMES)
    if num_frames < MIN_CONTINUED_SECONDS * FRAME_RATE:
        field = "end" if part.start is None else "start"
        raise _refusal(
            field, f"{field} must leave at least {MIN_CONTINUED_SECONDS:g} seconds of the audio to continue."
        )
    if num_frames >= window_seconds * FRAME_RATE:
        raise _refusal("start", _too_long(window_seconds))
    stride = command.extend_stride_seconds
    if num_frames / FRAME_RATE + command.duration_seconds > window_seconds <= stride:
        raise _refusal("extend_stride", f"extend_stride must be less than {window_seconds:g} for this model.")
    last = round(end * audio.sample_rate)
    first = max(0, last - num_frames * audio.sample_rate // FRAME_RATE)
    samples = np.ascontiguousarray(audio.waveform[:, first:last])  # a copy: the rest of the recording is freed
    return replace(
        command,
        audio_prompt=AudioInput(samples, audio.sample_rate, _codes_of_part(audio.codes, end, num_frames)),
        prompt_start=round(end - num_frames / FRAME_RATE, 6),
        prompt_end=round(end, 6),
        include_input=include_input,
    )


def with_input(params: GenerationParams) -> GenerationParams:
    """Return parameters for the engine, whose time begins with the audio to continue."""
    seconds = seconds_of(params.audio_prompt)
    if not seconds:
        return params
    segments = list(params.segments)
    if segments:
        segments[0] = segments[0]._replace(duration_seconds=seconds + segments[0].duration_seconds)
    return replace(params, duration_seconds=seconds + params.duration_seconds, segments=tuple(segments))


def seconds_left_out(command: GenerateCommand) -> float:
    """Return how much of the engine's audio, which begins with the audio to continue, is not part of the result."""
    return 0.0 if command.include_input else seconds_of(command.audio_prompt)


def without_input(result: GenerationResult, command: GenerateCommand) -> GenerationResult:
    """Return the audio that the client asked for."""
    seconds = seconds_left_out(command)
    if not seconds:
        return result
    codes = result.codes
    if codes is not None:
        codes = replace(codes, tokens=codes.tokens[:, round(seconds * FRAME_RATE) :])
    return replace(result, waveform=result.waveform[:, round(seconds * result.sample_rate) :], codes=codes)


def continuation_details(command: GenerateCommand, codec: str) -> dict[str, Any]:
    """Return what a recipe says about the audio that is continued; nothing without any.

    It has the digest of the codes if the model continued them, which depends on the `codec` of the result.
    """
    if command.audio_prompt is None:
        return {}
    audio = {"audio": audio_digest(command.audio_prompt)}
    codes = command.audio_prompt.codes
    if codes is not None and codes.codec == codec:
        audio["codes"] = codes_digest(codes)
    part = {"start": command.prompt_start, "end": command.prompt_end, "include_input": command.include_input}
    if command.continued_url is None:
        return audio | part
    return audio | {"continue_from": {"audio_url": command.continued_url} | part}


def _codes_of_part(codes: Codes | None, end: float, num_frames: int) -> Codes | None:
    if codes is None:
        return None
    last = round(end * FRAME_RATE)
    return replace(codes, tokens=np.ascontiguousarray(codes.tokens[:, last - num_frames : last]))


def _too_long(window_seconds: float) -> str:
    return f"The part from start to end must be shorter than {window_seconds:g} seconds, the window of the model."


def _refusal(field: str, sentence: str) -> InvalidRequest:
    return InvalidRequest(sentence, {field: [sentence]})
