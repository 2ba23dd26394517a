"""Evaluates a demo model at the service's defaults: `python -m demo_models.evaluation checkpoints demo`.

Thirty captions that no training saw are generated with the service's engine in int6. A reader of the codes and,
independently, measures of the sound say whether the music is what the caption asks for, legal, in time and in form.
Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from demo_models import generation, measures, reader, stereo
from demo_models.captions import bpm
from demo_models.composer import Codes

# Captions, and what must be heard: tempi are those in frames that fit the words.
_SLOW, _MEDIUM, _FAST = (10, 8), (8, 7), (7, 6)
CAPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("A relaxed lo-fi beat with electric piano and a soft bass, rainy mood",
     {"tempo": _SLOW, "chords": "keys", "bass": True, "drums": True, "mode": "minor"}),
    ("driving techno with a synth lead, dark", {"tempo": _FAST, "lead": "synth", "mode": "minor"}),
    ("Happy folk tune for flute and acoustic guitar, no drums",
     {"lead": "flute", "chords": "guitar", "drums": False, "mode": "major"}),
    ("waltz for violin, accordion, cheerful, without percussion",
     {"lead": "violin", "chords": "organ", "drums": False, "mode": "major"}),
    ("slow romantic ballad, grand piano, strings pads, melancholic", {"tempo": _SLOW, "mode": "minor"}),
    ("upbeat indie pop with drums, bass guitar and piano, sunny",
     {"tempo": _FAST, "drums": True, "bass": True, "lead": "piano", "mode": "major"}),
    ("ambient soundscape, music box, warm pads, no beat, no bass",
     {"lead": "bells", "chords": "pad", "drums": False, "bass": False}),
    ("marimba and organ, uplifting, fast", {"lead": "marimba", "chords": "organ", "tempo": _FAST, "mode": "major"}),
    ("sad violin over electric piano chords, 75 bpm",
     {"lead": "violin", "chords": "keys", "tempo": (10,), "mode": "minor"}),
    ("House track at 125 bpm, organ, deep synth bass, drums",
     {"tempo": (6,), "chords": "organ", "bass": True, "drums": True}),
    ("glockenspiel lullaby, gentle, without drums or bass", {"lead": "bells", "drums": False, "bass": False}),
    ("whistle and banjo, bouncy country, joyful", {"lead": "flute", "chords": "guitar", "mode": "major"}),
    ("moody trip hop, 94bpm, flute", {"tempo": (8,), "lead": "flute", "mode": "minor"}),
    ("please make me a bright tune with xylophone and no bassline",
     {"lead": "marimba", "bass": False, "mode": "major"}),
    ("cinematic strings, hammond organ, dramatic, percussion",
     {"lead": "violin", "chords": "organ", "drums": True, "mode": "minor"}),
    ("rock with guitar chords, synthesizer melody, drums and bass",
     {"chords": "guitar", "lead": "synth", "drums": True, "bass": True}),
    ("CHILLHOP, RHODES, VIBRAPHONE, NOSTALGIC", {"chords": "keys", "lead": "bells", "mode": "minor"}),
    ("an optimistic viennese waltz with piano and acoustic guitar, no drum kit",
     {"lead": "piano", "chords": "guitar", "drums": False, "mode": "major"}),
    ("meditation, pan flute, synth pads, drumless", {"lead": "flute", "chords": "pad", "drums": False}),
    ("Energetic club music, choir, bells, percussion",
     {"tempo": _FAST, "chords": "pad", "lead": "bells", "drums": True}),
    ("107 bpm, fiddle, ukulele, merry", {"tempo": (7,), "lead": "violin", "chords": "guitar", "mode": "major"}),
    ("somber piano alone, slow", {"lead": "piano", "tempo": _SLOW, "mode": "minor", "drums": False, "bass": False}),
    ("mid-tempo pop with kalimba, organ and a bass line, hopeful",
     {"tempo": _MEDIUM, "lead": "marimba", "chords": "organ", "bass": True, "mode": "major"}),
    ("haunting celesta melody, church organ, bassless",
     {"lead": "bells", "chords": "organ", "bass": False, "mode": "minor"}),
    ("electronic dance music, arpeggio, pads, gloomy, fast-paced",
     {"lead": "synth", "chords": "pad", "mode": "minor", "tempo": _FAST}),
    ("something playful for my cat video: clarinet, ukulele", {"lead": "flute", "chords": "guitar", "mode": "major"}),
    ("downtempo, cello, wurlitzer, brushed drums, bittersweet",
     {"tempo": _SLOW, "lead": "violin", "chords": "keys", "drums": True, "mode": "minor"}),
    ("acoustic guitar and piano melody, without drums, no bass",
     {"chords": "guitar", "lead": "piano", "drums": False, "bass": False}),
    ("happy 125 beats per minute disco with saw lead and bassline",
     {"tempo": (6,), "lead": "synth", "bass": True, "mode": "major"}),
    ("sleepy ambient pad, flute, minor key", {"chords": "pad", "lead": "flute", "mode": "minor", "tempo": _SLOW}),
)  # fmt: skip
ODD_PROMPTS = (
    *("", "zxqv brrt", "Fröhliche Musik für Klavier, bitte!", "速いピアノ", "piano,,, !!! 🎹"),
    *("no", "no no no", "without", "no,", "not", "piano no"),
)


def followed(wanted: dict[str, Any], reading: reader.Reading) -> dict[str, bool]:
    """Return for each thing that a caption asks for whether the codes have it."""
    heard = {"drums": reading.drums, "bass": reading.bass is not None, "mode": reading.mode}
    heard |= {"lead": reading.lead, "chords": reading.chords}
    result = {name: heard[name] == value for name, value in wanted.items() if name != "tempo"}
    if "tempo" in wanted:
        result["tempo"] = reading.tempo in wanted["tempo"]
    return result


def read_codes(pieces: Sequence[Codes], wanted: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the figures of the reader of the codes."""
    flags: dict[str, list[float]] = defaultdict(list)
    for codes, wish in zip(pieces, wanted, strict=True):
        reading = reader.read(codes)
        for name, good in followed(wish, reading).items():
            flags[name].append(good)
        flags["legal"].append(float(reader.legal_steps(codes).mean()))
        flags["on_grid"].append(reading.on_grid)
        flags["chords_in_key"].append(reading.chords_in_key)
        flags["lead_in_scale"].append(reading.lead_in_scale)
        flags["lead_on_chord"].append(reader.on_chord(codes))
        for name, same in reader.form(codes).items():
            flags[name].extend(same)
    return {name: round(float(np.mean(values)), 4) for name, values in flags.items() if values}


def read_sound(waves: Sequence[Any], wanted: Sequence[dict[str, Any]], pieces: Sequence[Codes]) -> dict[str, float]:
    """Return the figures that are measured in waveforms [C, T] alone, and how often both readers agree."""
    flags: dict[str, list[float]] = defaultdict(list)
    levels = []
    for sides, wish, codes in zip(waves, wanted, pieces, strict=True):
        wave = sides.mean(0)
        reading = reader.read(codes)
        if reading.tempo is not None:
            heard = measures.tempo(wave)
            right = [abs(heard * octave / bpm(reading.tempo) - 1) < 0.03 for octave in (0.5, 2 / 3, 1, 1.5, 2)]
            flags["tempo_sounds_as_written"].append(any(right))
        mode = measures.mode(wave)
        if "mode" in wish:
            flags["mode_in_sound"].append(mode == wish["mode"])
        flags["edge_roughness"].append(measures.edge_roughness(wave))
        if not reading.drums:
            flags["broadband_peak_db"].append(measures.broadband_peak(wave))
        flags["peak"].append(float(np.abs(sides).max()))
        levels.append(measures.loudness(sides))
    worst = ("edge_roughness", "broadband_peak_db", "peak")
    figures = {name: round(float(max(v) if name in worst else np.mean(v)), 4) for name, v in flags.items()}
    return figures | {"quietest_lufs": round(min(levels), 1), "loudest_lufs": round(max(levels), 1)}


def evaluate(model: Any, seconds: float = 15.0, count: int = len(CAPTIONS), rounds: int = 1) -> dict[str, Any]:
    """Return all figures of a model. Of a stereo model, loudness and peak are measured in stereo, the rest in mono.

    Each of the first `count` captions is generated `rounds` times, with different seeds.
    """
    captions, wanted = zip(*CAPTIONS[:count] * rounds, strict=True)
    begin = time.monotonic()
    pieces = generation.generate(model, captions, seconds)
    waves = [model.decode_codes(torch.tensor(codes)[None]).numpy() for codes in pieces]
    took = time.monotonic() - begin
    odd = generation.generate(model, ODD_PROMPTS, seconds)
    figures: dict[str, Any] = {"model": model.spec.name, "seconds": seconds, "captions": count, "rounds": rounds}
    if model.channels == 2:
        figures["stereo"] = {
            "followers_keep_their_rules": round(float(np.mean([stereo.following(codes) for codes in pieces])), 4),
            "correlation": round(float(np.mean([measures.correlation(wave) for wave in waves])), 3),
            "level_in_mono_db": round(float(np.mean([measures.level_in_mono(wave) for wave in waves])), 2),
        }
        pieces, odd = ([stereo.leaders(codes) for codes in group] for group in (pieces, odd))
    figures["codes"] = read_codes(pieces, wanted)
    figures["sound"] = read_sound(waves, wanted, pieces)
    figures["odd_prompts"] = read_codes(odd, [{}] * len(odd))
    figures["generated_per_second"] = round(len(pieces) * seconds / took, 1)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate a demo model.")
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("name", nargs="?", default="demo")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=5, help="times that each caption is generated")
    arguments = parser.parse_args()
    model = generation.load(arguments.checkpoints, arguments.name)
    print(json.dumps(evaluate(model, arguments.seconds, rounds=arguments.rounds)))


if __name__ == "__main__":
    main()
