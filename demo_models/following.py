"""Evaluates how closely the melody model follows melodies: `python -m demo_models.following checkpoints`.

Three folk tunes that are not in the training data are rendered in four ways: sung, played by a flute, played by a flute
with a band, and as notes. The service's engine generates clips for each, with the service's defaults and int6. Prints
one JSON line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from audiocraft_api.core.melody_line import MelodyLine, line_of
from audiocraft_api.core.params import AudioInput
from demo_models import evaluation, generation, reader
from demo_models.composer import Codes, Facts, compose
from demo_models.dimensions import HOP, NUM_CLASSES
from demo_models.melody import Classes
from demo_models.score import FRAME, FRAME_RATE, PARTS, SAMPLE_RATE, SILENCE, hertz

Wave = NDArray[np.float32]

# The beginnings of three folk tunes as (MIDI pitch, length in beats).
TUNES = {
    "Ode to Joy": (
        *((64, 1), (64, 1), (65, 1), (67, 1), (67, 1), (65, 1), (64, 1), (62, 1), (60, 1), (60, 1), (62, 1), (64, 1)),
        *((64, 1.5), (62, 0.5), (62, 2), (64, 1), (64, 1), (65, 1), (67, 1), (67, 1), (65, 1), (64, 1), (62, 1)),
    ),
    "Frère Jacques": (
        *((65, 1), (67, 1), (69, 1), (65, 1), (65, 1), (67, 1), (69, 1), (65, 1), (69, 1), (70, 1), (72, 2)),
        *((69, 1), (70, 1), (72, 2), (72, 0.5), (74, 0.5), (72, 0.5), (70, 0.5), (69, 1), (65, 1)),
    ),
    "Greensleeves": (
        *((69, 1), (72, 2), (74, 1), (76, 1.5), (77, 0.5), (76, 1), (74, 2), (71, 1), (67, 1.5), (69, 0.5), (71, 1)),
        *((72, 2), (69, 1), (69, 1.5), (68, 0.5), (69, 1), (71, 2), (68, 1), (64, 2)),
    ),
}
BEAT = 0.53  # seconds; 113 bpm, which is none of the tempos of `score`
CAPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("flute and acoustic guitar", {"lead": "flute", "chords": "guitar"}),
    ("slow violin over organ", {"lead": "violin", "chords": "organ"}),
    ("techno with a synth lead", {"lead": "synth"}),
    ("piano ballad", {"lead": "piano"}),
)
_BAND = Facts(groove=6, tempo=8, drums=True, key=0, loop=1, chords="guitar", bass="finger", lead="flute")


def notes_of(tune: str) -> MelodyLine:
    """Return the notes of a tune in `TUNES`."""
    pitches, beats = zip(*TUNES[tune], strict=True)
    return line_of(zip(pitches, np.cumsum(beats) * BEAT, strict=True))


def sung(notes: MelodyLine) -> Wave:
    """Return the waveform [T] of a tune that a voice sings, with vibrato and glides between the notes."""
    samples = int(notes.seconds * SAMPLE_RATE)
    ends = np.array([note.end_ms for note in notes.notes]) * SAMPLE_RATE / 1000
    pitches = np.array([note.pitch for note in notes.notes], float)
    wanted = pitches[np.minimum(np.searchsorted(ends, np.arange(samples), side="right"), len(pitches) - 1)]
    glide = SAMPLE_RATE // 20
    smooth = np.convolve(np.pad(wanted, glide // 2, mode="edge"), np.ones(glide) / glide, mode="valid")[:samples]
    vibrato = 0.25 * np.sin(2 * np.pi * 5.5 * np.arange(samples) / SAMPLE_RATE)
    phase = 2 * np.pi * np.cumsum([hertz(p) for p in smooth - 12 + vibrato]) / SAMPLE_RATE
    wave: Wave = (0.1 * sum(h**-1.2 * np.sin(h * phase) for h in range(1, 9))).astype(np.float32)
    return wave


def played(notes: MelodyLine, sound: str = "flute", band: bool = False) -> Codes:
    """Return the codes [4, T] of a tune that the lead plays, alone or with drums, bass and chords."""
    num_frames = int(notes.seconds * FRAME_RATE)
    codes = np.full((len(PARTS), num_frames), SILENCE, np.int64)
    codes[0] = PARTS[0].onset("none", (_BAND.tempo, 1))
    if band:
        codes = compose(np.random.default_rng(1), _BAND, num_frames // 100)[:, :num_frames]
    begin = 0
    for note in notes.notes:
        code = PARTS[3].onset(sound, note.pitch)
        for t in range(begin, min(note.end_ms * FRAME_RATE // 1000, num_frames)):
            codes[3, t], code = code, int(PARTS[3].successor[code])
            begin = t + 1
    return codes


def renditions(model: Any, tune: str) -> Iterator[tuple[str, AudioInput | MelodyLine, Classes]]:
    """Yield each rendition of a tune: its name, what is sent to the service, and the chroma of the tune alone."""
    notes, extractor = notes_of(tune), model.lm.condition_provider.conditioners["self_wav"].chroma

    def classes(wave: Wave) -> Classes:
        heard: Classes = extractor(torch.tensor(wave)[None])[0].argmax(-1).numpy()
        return heard

    def decoded(codes: Codes) -> Wave:
        wave: Wave = model.decode_codes(torch.tensor(codes)[None])[0].numpy()
        return wave

    voice, flute = sung(notes), decoded(played(notes))
    yield "sung", AudioInput(voice[None], SAMPLE_RATE), classes(voice)
    yield "played", AudioInput(flute[None], SAMPLE_RATE), classes(flute)
    yield "played in a band", AudioInput(decoded(played(notes, band=True))[None], SAMPLE_RATE), classes(flute)
    yield "notes", notes, classes(flute)


def following(codes: Codes, classes: Classes) -> float:
    """Return the share of chroma frames in which the lead plays the pitch class of the chroma."""
    playing = np.full(codes.shape[1], -1)
    for note in reader.notes(3, codes[3]):
        playing[note.start : note.start + note.length] = int(note.item) % NUM_CLASSES  # type: ignore[call-overload]
    at = np.arange(min(len(classes), codes.shape[1] * FRAME // HOP)) * HOP // FRAME
    return float((playing[at] == classes[: len(at)]).mean())


def evaluate(
    model: Any, tunes: Sequence[str] = tuple(TUNES), num_captions: int = len(CAPTIONS), **parameters: Any
) -> dict[str, Any]:
    """Return the mean accuracy of each rendition, and the figures of the codes of all clips."""
    captions, wanted = zip(*CAPTIONS[:num_captions], strict=True)
    pieces: list[Codes] = []
    shares: dict[str, list[float]] = {}
    for tune in tunes:
        for name, melody, classes in renditions(model, tune):
            clips = generation.generate(model, captions, notes_of(tune).seconds, melody=melody, **parameters)
            shares.setdefault(name, []).extend(following(codes, classes) for codes in clips)
            pieces += clips
    figures: dict[str, Any] = {name: round(float(np.mean(values)), 3) for name, values in shares.items()}
    figures["codes"] = evaluation.read_codes(pieces, wanted * (len(pieces) // num_captions))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate how closely the melody model follows melodies.")
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("--guidance", type=float, help="guidance, instead of the service's default")
    arguments = parser.parse_args()
    parameters = {} if arguments.guidance is None else {"cfg_coef": arguments.guidance}
    print(json.dumps(evaluate(generation.load(arguments.checkpoints, "demo-melody"), **parameters), ensure_ascii=False))


if __name__ == "__main__":
    main()
